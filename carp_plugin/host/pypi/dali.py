"""NVIDIA DALI data of solo-learn 1.0.2, to pretrain and for linear evaluation, as the current host's data modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, Union

import lightning.pytorch as pl
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from carp_plugin.errors import UserError
from carp_plugin.host.common import ServesListed, missing_dali

try:
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.plugin.pytorch import LastBatchPolicy
    from solo.methods.dali import PretrainWrapper, Wrapper
    from solo.utils.dali_dataloader import CustomTransform, NormalPipeline, PretrainPipeline
except ImportError as error:
    DALI_AVAILABLE = False
    ClassificationDALIDataModule = missing_dali(error)
    PretrainDALIDataModule = build_transform_pipeline_dali = missing_dali(error)
else:
    DALI_AVAILABLE = True

    class _WithoutDevice(Pipeline):
        """A pipeline that passes no device id on: DALI refuses one on a machine without a GPU."""

        def __init__(
            self,
            batch_size: int,
            num_threads: int,
            device_id: Optional[int] = None,
            seed: int = -1,
            **kwargs: Any,
        ) -> None:
            super().__init__(batch_size, num_threads, device_id=None, seed=seed, **kwargs)

    class _PretrainPipeline(ServesListed, PretrainPipeline):
        """1.0.2's pipeline of views."""

    class _NormalPipeline(ServesListed, NormalPipeline):
        """1.0.2's pipeline of labelled images."""

    class _CPUPretrainPipeline(_PretrainPipeline, _WithoutDevice):
        """1.0.2's pipeline on the CPU; its own constructor adds the device id to the seed first."""

    class _CPUNormalPipeline(_NormalPipeline, _WithoutDevice):
        """1.0.2's pipeline of labelled images on the CPU."""

    def build_transform_pipeline_dali(dataset: str, cfg: Any, dali_device: str) -> Callable:
        """Augmentation of one view for DALI, from a node of ``augmentations``.

        Args:
            dataset: imagenet, imagenet100 or custom.
            cfg: as for ``build_transform_pipeline``.
            dali_device: ``"cpu"`` or ``"gpu"``.

        Raises:
            UserError: for steps that 1.0.2 has no DALI operator for.
        """
        if cfg.equalization.prob or not cfg.rrc.enabled:
            raise UserError(
                "with data.format=dali solo-learn 1.0.2 has neither equalization nor views without a random crop; set "
                "equalization.prob of the pipelines to 0 and rrc.enabled to True, or use data.format=image_folder."
            )
        return CustomTransform(
            device=dali_device,
            brightness=cfg.color_jitter.brightness,
            contrast=cfg.color_jitter.contrast,
            saturation=cfg.color_jitter.saturation,
            hue=cfg.color_jitter.hue,
            color_jitter_prob=cfg.color_jitter.prob,
            gray_scale_prob=cfg.grayscale.prob,
            horizontal_flip_prob=cfg.horizontal_flip.prob,
            gaussian_prob=cfg.gaussian_blur.prob,
            solarization_prob=cfg.solarization.prob,
            min_scale=cfg.rrc.crop_min_scale,
            max_scale=cfg.rrc.crop_max_scale,
            crop_size=cfg.crop_size,
            mean=tuple(cfg.get("mean", IMAGENET_DEFAULT_MEAN)),
            std=tuple(cfg.get("std", IMAGENET_DEFAULT_STD)),
        )

    class PretrainDALIDataModule(pl.LightningDataModule):  # type: ignore[no-redef]
        """Pretraining batches [indexes, views, labels] from DALI; arguments as on the current host."""

        def __init__(
            self,
            dataset: str,
            train_data_path: Union[str, Path],
            transforms: Any,
            num_large_crops: int,
            num_small_crops: int,
            batch_size: int,
            num_workers: int = 4,
            no_labels: bool = False,
            data_fraction: float = -1.0,
            dali_device: str = "gpu",
            encode_indexes_into_labels: bool = False,
        ) -> None:
            super().__init__()
            if data_fraction > 0:
                raise UserError(
                    "data.fraction with data.format=dali needs solo-learn 1.0.6 or later."
                )
            self.train_data_path = Path(train_data_path)
            self.crops = transforms.transforms
            self.views = [f"large{i}" for i in range(num_large_crops)]
            self.views += [f"small{i}" for i in range(num_small_crops)]
            self.batch_size, self.num_workers = batch_size, num_workers
            self.no_labels, self.dali_device = no_labels, dali_device
            self.encode_indexes_into_labels = encode_indexes_into_labels

        def setup(self, stage: Optional[str] = None) -> None:
            """Builds the pipeline of this rank's shard."""
            trainer: Any = self.trainer
            rank = trainer.local_rank
            on_gpu = torch.cuda.is_available() and self.dali_device == "gpu"
            device = torch.device(f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")
            pipeline = (_CPUPretrainPipeline if self.dali_device == "cpu" else _PretrainPipeline)(
                self.train_data_path,
                batch_size=self.batch_size,
                device=self.dali_device,
                transforms=[crop.transform for crop in self.crops],
                num_crops_per_aug=[crop.num_crops for crop in self.crops],
                device_id=rank,
                shard_id=trainer.global_rank,
                num_shards=trainer.world_size,
                num_threads=self.num_workers,
                no_labels=self.no_labels,
                encode_indexes_into_labels=self.encode_indexes_into_labels,
            )
            self.train_loader = PretrainWrapper(
                model_batch_size=self.batch_size,
                model_rank=rank,
                model_device=device,
                conversion_map=getattr(pipeline, "conversion_map", None),
                pipelines=pipeline,
                output_map=[*self.views, "label"],
                reader_name="Reader",
                last_batch_policy=LastBatchPolicy.DROP,
                auto_reset=True,
            )

        def train_dataloader(self) -> Any:
            """The loader of this rank."""
            return self.train_loader

    class ClassificationDALIDataModule(pl.LightningDataModule):  # type: ignore[no-redef]
        """Labelled training batches (images, labels) from DALI at 224 pixels; arguments as on the current host.

        Validation images are left to a loader of torch's, which keeps their order.
        """

        def __init__(
            self,
            dataset: str,
            train_data_path: Union[str, Path],
            val_data_path: Union[str, Path],
            batch_size: int,
            num_workers: int = 4,
            data_fraction: float = -1.0,
            dali_device: str = "gpu",
        ) -> None:
            super().__init__()
            if data_fraction > 0:
                raise UserError(
                    "data.fraction with data.format=dali needs solo-learn 1.0.6 or later."
                )
            self.train_data_path = Path(train_data_path)
            self.batch_size, self.num_workers = batch_size, num_workers
            self.dali_device = dali_device

        def setup(self, stage: Optional[str] = None) -> None:
            """Builds the pipeline of this rank's shard."""
            trainer: Any = self.trainer
            pipeline = (_CPUNormalPipeline if self.dali_device == "cpu" else _NormalPipeline)(
                self.train_data_path,
                batch_size=self.batch_size,
                device=self.dali_device,
                validation=False,
                device_id=trainer.local_rank,
                shard_id=trainer.global_rank,
                num_shards=trainer.world_size,
                num_threads=self.num_workers,
            )
            self.train_loader = Wrapper(
                pipeline,
                output_map=["x", "label"],
                reader_name="Reader",
                last_batch_policy=LastBatchPolicy.DROP,
                auto_reset=True,
            )

        def train_dataloader(self) -> Any:
            """The loader of this rank."""
            return self.train_loader


__all__ = [
    "ClassificationDALIDataModule",
    "DALI_AVAILABLE",
    "PretrainDALIDataModule",
    "build_transform_pipeline_dali",
]
