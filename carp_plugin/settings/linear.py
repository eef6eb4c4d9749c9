"""What a linear evaluation is told."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Tuple

from pydantic import model_validator

from carp_plugin.settings.kinds import Free, PathText, Pixels, Probability, Text
from carp_plugin.settings.model import Settings, key, rule
from carp_plugin.settings.parts import DOWNLOADED, Dali, Data, Network, Optimizer
from carp_plugin.settings.reading import read
from carp_plugin.settings.trainer import Run

#: What solo-learn's own script can do beyond a linear layer on a frozen backbone; off is taken, on is refused.
NOT_LINEAR = ("finetune", "mixup", "cutmix", "label_smoothing", "auto_augment")


class TrainTransform(Settings):
    """Random resized crops to train on."""

    crop_size: Pixels = key(..., "side of a crop", unit="pixels")
    scale: Optional[Tuple[Probability, Probability]] = key(
        None, "smallest and largest part of the image's area; null: 0.08 to 1"
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> TrainTransform:
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise rule(f"{{at}}scale must rise, as in [0.08,1], got {list(self.scale)}.")
        return self


class LinearData(Data):
    """Labelled images."""

    val_path: PathText = key(..., "validation images, in folders of the same names")
    train_transform: Optional[TrainTransform] = key(
        None, "null: the host's transform of the data set (crops of 224 pixels)"
    )

    @model_validator(mode="after")
    def _dali_crops_itself(self) -> LinearData:
        if self.format == "dali" and self.train_transform is not None:
            raise rule(
                "{at}train_transform has no effect with {at}format=dali, whose pipeline crops to 224 pixels; leave it "
                "out, or set {at}format=image_folder."
            )
        if self.format == "dali" and self.dataset in DOWNLOADED:
            raise rule(
                f"{{at}}format=dali reads folders of images, not {self.dataset}; set {{at}}format=image_folder."
            )
        return self


class NamedBackbone(Settings):
    """The backbone of the checkpoint; what is named must agree with it."""

    name: Optional[Text] = key(None, "null: the checkpoint's")
    kwargs: Optional[Free] = key(None, "null: the checkpoint's")


class Linear(Run):
    """A linear evaluation, appendix C.1 of the paper."""

    pretrained_feature_extractor: PathText = key(
        ..., "the checkpoint that is evaluated, or the folder of its run"
    )
    network: Network = key("student", "which of its networks")
    pretrain_method: Optional[Text] = key(None, "null: the checkpoint's")
    backbone: NamedBackbone = key(NamedBackbone(), "null: the checkpoint's")
    data: LinearData = key(..., "the images")
    optimizer: Optimizer = key(..., "the optimizer")
    dali: Dali = key(Dali(), "NVIDIA DALI")
    finetune: Any = key(None, "refused where it is on: solo-learn's own script has it")
    mixup: Any = key(None, "refused where it is on")
    cutmix: Any = key(None, "refused where it is on")
    label_smoothing: Any = key(None, "refused where it is on")
    auto_augment: Any = key(None, "refused where it is on")

    @model_validator(mode="after")
    def _frozen_in_its_own_type(self) -> Linear:
        if str(self.precision) in ("64", "64-true", "16-true", "bf16-true"):
            raise rule(
                f"precision={self.precision} would convert the frozen backbone itself, and its features with it; use "
                "precision=32-true, or bf16-mixed or 16-mixed, which leave its weights alone."
            )
        return self

    @model_validator(mode="after")
    def _linear(self) -> Linear:
        for name in NOT_LINEAR:
            if getattr(self, name):
                raise rule(
                    f"{name}={getattr(self, name)} is no linear evaluation: here a linear layer is trained on a frozen "
                    "backbone with cross-entropy and crops; leave it out, or run solo-learn's own script: "
                    "`python -m carp_plugin main_linear.py` in a checkout of 1.0.6 or later."
                )
        return self


def read_linear(values: Mapping[Any, Any]) -> Linear:
    """The settings of a linear evaluation.

    Args:
        values: nested keys, as YAML gives them.

    Raises:
        UserError: the first mistake.
    """
    return read(Linear, values)
