"""What a fine-tuning is told: appendix C.2 of the paper, with a part of the labels or all of them."""

from __future__ import annotations

from typing import Any, Literal, Mapping, Optional, Tuple

from pydantic import model_validator

from carp_plugin.settings.kinds import Count, Index, NotNegative, PathText, Seed, Share
from carp_plugin.settings.linear import LinearData, NamedBackbone
from carp_plugin.settings.model import Settings, key, rule
from carp_plugin.settings.parts import Dali, Network, OptimizerKwargs
from carp_plugin.settings.reading import read
from carp_plugin.settings.trainer import Run


class FinetuneData(LinearData):
    """Labelled images."""

    @model_validator(mode="after")
    def _labels_have_a_node(self) -> FinetuneData:
        if self.fraction != -1:
            raise rule(
                f"{{at}}fraction={self.fraction:g} is not used by a fine-tuning, which says by name which labels it "
                f"had; set labels.fraction={self.fraction:g} in its place."
            )
        return self


class Labels(Settings):
    """Which training images are used; the others are left out."""

    fraction: Share = key(1.0, "part of every class, at least one image of it")
    file: Optional[PathText] = key(
        None, "in its place: a list of names, one a line, as SimCLR's 1percent.txt"
    )
    seed: Seed = key(0, "of the draw of a fraction")

    @model_validator(mode="after")
    def _one_of_them(self) -> Labels:
        if self.file is not None and self.fraction < 1:
            raise rule(
                f"{{at}}fraction={self.fraction:g} and {{at}}file={self.file} are two ways to choose; take the file "
                "with {at}fraction=1, or the fraction with {at}file=null."
            )
        return self


class FinetuneOptimizer(Settings):
    """SGD; both rates are for 256 images and are scaled by the global batch / 256."""

    name: Literal["sgd"] = key("sgd", "optimizer")
    batch_size: Count = key(..., "images a step and device", unit="images")
    lr: NotNegative = key(..., "rate of the backbone for 256 images; x global batch / 256")
    classifier_lr: NotNegative = key(..., "rate of the classifier, likewise")
    weight_decay: NotNegative = key(0.0, "weight decay, of both")
    kwargs: OptimizerKwargs = key(OptimizerKwargs(), "what the optimizer takes besides")


class FinetuneScheduler(Settings):
    """How both learning rates run."""

    name: Literal["step", "none"] = key("step", "schedule")
    lr_decay_steps: Tuple[Index, ...] = key(
        (12, 16), "step: whole epochs after which the rates are multiplied by gamma", min_length=1
    )
    gamma: Share = key(0.2, "step: factor of both rates")

    @model_validator(mode="after")
    def _epochs_rise(self) -> FinetuneScheduler:
        steps = self.lr_decay_steps
        if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise rule(
                f"{{at}}lr_decay_steps must be rising epochs of at least 1, as in [12,16], got {list(steps)}."
            )
        return self


class Finetune(Run):
    """A fine-tuning, appendix C.2 of the paper."""

    pretrained_feature_extractor: Optional[PathText] = key(
        None, "the checkpoint that is fine-tuned, or the folder of its run"
    )
    network: Network = key("student", "which of its networks")
    head_layers: Index = key(
        0, "layers of the pretrained projector kept below the classifier; 1 is SimCLR v2's way"
    )
    weights: Literal["pretrained", "random"] = key(
        "pretrained", "random: the same backbone from labels alone, the supervised reference"
    )
    backbone: NamedBackbone = key(
        NamedBackbone(), "null: the checkpoint's; without one, what random weights are of"
    )
    data: FinetuneData = key(..., "the images")
    labels: Labels = key(Labels(), "which labels")
    optimizer: FinetuneOptimizer = key(..., "the optimizer")
    scheduler: FinetuneScheduler = key(  # type: ignore[assignment]
        FinetuneScheduler(), "schedule of both learning rates"
    )
    dali: Dali = key(Dali(), "NVIDIA DALI")

    @model_validator(mode="after")
    def _something_to_begin_with(self) -> Finetune:
        if self.pretrained_feature_extractor is not None:
            return self
        if self.weights == "pretrained":
            raise rule(
                "pretrained_feature_extractor is missing: add pretrained_feature_extractor=PATH, the checkpoint or the "
                "folder of a run of main_pretrain.py; or weights=random, for the same backbone from labels alone."
            )
        if self.backbone.name is None:
            raise rule(
                "weights=random needs to know the backbone: add backbone.name=resnet50, or "
                "pretrained_feature_extractor=PATH, to take that of a checkpoint."
            )
        return self

    @model_validator(mode="after")
    def _a_head_is_pretrained(self) -> Finetune:
        if self.head_layers and self.weights == "random":
            raise rule(
                f"head_layers={self.head_layers} keeps layers of a pretrained projector, of which weights=random has "
                "none; give head_layers=0, or weights=pretrained."
            )
        return self

    @model_validator(mode="after")
    def _weights_stay_in_full_precision(self) -> Finetune:
        if str(self.precision) in ("64", "64-true", "16-true", "bf16-true"):
            raise rule(
                f"precision={self.precision} would convert the pretrained weights; use precision=32-true, or "
                "bf16-mixed or 16-mixed."
            )
        return self


def read_finetune(values: Mapping[str, Any]) -> Finetune:
    """The settings of a fine-tuning.

    Args:
        values: nested keys, as YAML gives them.

    Raises:
        UserError: the first mistake.
    """
    return read(Finetune, values)
