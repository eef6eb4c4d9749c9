"""solo-learn 1.0.6 and later (GitHub main): re-exports, and defects of the host mended at the door."""

from __future__ import annotations

from typing import List, Optional, Set

from solo.args.linear import parse_cfg as parse_linear_cfg
from solo.args.pretrain import parse_cfg as parse_pretrain_cfg
from solo.data.classification_dataloader import (
    prepare_data as prepare_classification_data,
)
from solo.data.classification_dataloader import (
    prepare_dataloaders as prepare_classification_dataloaders,
)
from solo.data.classification_dataloader import (
    prepare_datasets as prepare_classification_datasets,
)
from solo.data.classification_dataloader import (
    prepare_transforms as prepare_classification_transforms,
)
from solo.data.pretrain_dataloader import (
    FullTransformPipeline,
    NCropAugmentation,
    build_transform_pipeline,
    prepare_datasets,
)
from solo.methods import METHODS
from solo.methods import base as _base
from solo.methods import deepclusterv2 as _deepclusterv2
from solo.methods import linear as _linear
from solo.methods.base import BaseMethod, BaseMomentumMethod
from solo.methods.linear import LinearModel
from solo.utils.auto_resumer import AutoResumer
from solo.utils.checkpointer import Checkpointer
from solo.utils.knn import WeightedKNNClassifier
from solo.utils.lars import LARS
from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR as _WarmupCosine
from solo.utils.misc import make_contiguous, omegaconf_select
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params

from carp_plugin.host.common import (
    RESUME_MUST_MATCH,
    ServesListed,
    keys_in_source,
    missing_dali,
    serve_files,
    within_classes,
    zero_without_assignments,
)

try:
    from solo.data import dali_dataloader as _dali
    from solo.data.dali_dataloader import (
        ClassificationDALIDataModule,
        PretrainDALIDataModule,
        build_transform_pipeline_dali,
    )
except ImportError as error:
    DALI_AVAILABLE = False
    ClassificationDALIDataModule = missing_dali(error)
    PretrainDALIDataModule = build_transform_pipeline_dali = missing_dali(error)
else:
    DALI_AVAILABLE = True

    class _WithoutDevice:
        """DALI refuses a device id on a machine without a GPU; a CPU pipeline has none."""

        @property
        def device_id(self) -> Optional[int]:
            return None if self.device == "cpu" else self._device_id  # type: ignore[attr-defined]

        @device_id.setter
        def device_id(self, value: int) -> None:
            self._device_id = value

    for _name in (
        "PretrainPipelineBuilder",
        "NormalPipelineBuilder",
        "CustomNormalPipelineBuilder",
    ):
        _builder = getattr(_dali, _name)
        setattr(_dali, _name, type(_name, (ServesListed, _WithoutDevice, _builder), {}))

try:
    from solo.utils.auto_umap import AutoUMAP
except ImportError:
    AutoUMAP = None

BACKBONES = BaseMethod._BACKBONES


class LinearWarmupCosineAnnealingLR(_WarmupCosine):
    """The host's schedule, for runs without a warm-up and beyond its end.

    The host's begins every parameter group at the backbone's rate where there is no warm-up, and climbs back up once
    it has come down. Arguments as the host's.
    """

    def get_lr(self) -> List[float]:
        """Learning rate of each parameter group at the current step."""
        if self.last_epoch == 0 and self.warmup_epochs == 0:
            return list(self.base_lrs)
        if self.last_epoch > self.max_epochs:
            return [self.eta_min] * len(self.base_lrs)
        return super().get_lr()


_base.LinearWarmupCosineAnnealingLR = LinearWarmupCosineAnnealingLR
_linear.LinearWarmupCosineAnnealingLR = LinearWarmupCosineAnnealingLR

_linear.accuracy_at_k = within_classes(_linear.accuracy_at_k)
_base.accuracy_at_k = within_classes(_base.accuracy_at_k)
_deepclusterv2.deepclusterv2_loss_func = zero_without_assignments(
    _deepclusterv2.deepclusterv2_loss_func
)

# Of the checkout's own main_pretrain.py; carp_plugin has a resumer that compares everything. The host's ignores what
# makes two runs of a method different; it compares these as well.
AutoResumer.SHOULD_MATCH = AutoResumer.SHOULD_MATCH + [
    key for key in RESUME_MUST_MATCH if key not in AutoResumer.SHOULD_MATCH
]


def method_keys(name: str) -> Set[str]:
    """The keys of ``method_kwargs`` that a method takes.

    Args:
        name: a key of ``METHODS``.

    Returns:
        Set[str]: names of the keys; empty where they cannot be told.
    """
    return keys_in_source(METHODS[name])


__all__ = [
    "AutoUMAP",
    "BACKBONES",
    "BaseMethod",
    "BaseMomentumMethod",
    "Checkpointer",
    "ClassificationDALIDataModule",
    "DALI_AVAILABLE",
    "FullTransformPipeline",
    "LARS",
    "LinearModel",
    "LinearWarmupCosineAnnealingLR",
    "METHODS",
    "MomentumUpdater",
    "NCropAugmentation",
    "PretrainDALIDataModule",
    "WeightedKNNClassifier",
    "build_transform_pipeline",
    "build_transform_pipeline_dali",
    "initialize_momentum_params",
    "make_contiguous",
    "method_keys",
    "omegaconf_select",
    "parse_linear_cfg",
    "parse_pretrain_cfg",
    "prepare_classification_data",
    "prepare_classification_dataloaders",
    "prepare_classification_datasets",
    "prepare_classification_transforms",
    "prepare_datasets",
    "serve_files",
]
