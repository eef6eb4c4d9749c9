"""What a pretraining is told."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Literal, Mapping, Optional, Tuple, Type

from pydantic import model_validator

from carp_plugin.settings.kinds import Count, Index, NotNegative, PathText, Positive, Switch, Text
from carp_plugin.settings.methods import (
    CarlKwargs,
    InfominKwargs,
    PatchKwargs,
    PclKwargs,
    PirlKwargs,
    SelaKwargs,
    Simclrv2Kwargs,
    SupervisedKwargs,
)
from carp_plugin.settings.model import Settings, key, rule
from carp_plugin.settings.parts import (
    Backbone,
    CarpKwargs,
    Dali,
    Data,
    HostMethodKwargs,
    Momentum,
    Optimizer,
    Pipeline,
)
from carp_plugin.settings.reading import read
from carp_plugin.settings.trainer import Run

#: Methods that are not trained on two large views.
_OTHER_VIEWS = ("wmse", "mae")


class PretrainingData(Data):
    """Images of a pretraining."""

    no_labels: Switch = key(False, "unlabelled images: any tree of folders")


class PretrainingOptimizer(Optimizer):
    """The optimizer of a pretraining."""

    classifier_lr: NotNegative = key(
        ..., "rate of the online classifier for 256 images; scaled where there is data.val_path"
    )


class PretrainingDali(Dali):
    """NVIDIA DALI in a pretraining."""

    encode_indexes_into_labels: Switch = key(False, "batches know their images' numbers")


class AutoUmap(Settings):
    """Pictures of the features during training; needs the extra umap."""

    enabled: Switch = key(False, "draw them")
    dir: PathText = key("auto_umap", "folder")
    frequency: Count = key(1, "between two pictures", unit="epochs")


class KnnEval(Settings):
    """The host's own k-NN during training."""

    enabled: Switch = key(False, "measure it")
    k: Count = key(20, "neighbours")
    distance_func: Literal["cosine", "euclidean"] = key("euclidean", "distance")


class Evaluation(Settings):
    """k-NN and linear accuracy of random, student and teacher features."""

    enabled: Switch = key(True, "measure them before and after training")
    k: Count = key(20, "neighbours of the k-NN")
    temperature: Positive = key(0.07, "tau of the votes")
    frequency: Index = key(0, "k-NN during training; 0 is never", unit="epochs")


class Collapse(Settings):
    """The collapse monitor."""

    enabled: Switch = key(True, "watch for collapse")
    stop: Switch = key(False, "end the run when it is found")

    @model_validator(mode="after")
    def _stopping_needs_watching(self) -> Collapse:
        if self.stop and not self.enabled:
            raise rule(
                "{at}stop=True needs the monitor, which {at}enabled=False switches off; leave out one of them."
            )
        return self


class Pretraining(Run):
    """A pretraining of any method of the host."""

    #: How many large views the method takes; None is any number.
    wanted_views: ClassVar[Optional[int]] = 2
    #: Whether it takes small views, too; the host knows of its own methods.
    takes_small_views: ClassVar[bool] = True

    method: Text = key(
        ...,
        "carp, carl, pclv2, selav2, pirl, infomin, simclrv2, supervised, or a method of the host: byol, swav …",
    )
    method_kwargs: HostMethodKwargs = key(HostMethodKwargs(), "the method's own keys")
    backbone: Backbone = key(..., "the network")
    momentum: Momentum = key(Momentum(), "the teacher, where the method has one")
    data: PretrainingData = key(..., "the images")
    augmentations: Tuple[Pipeline, ...] = key(..., "pipelines that make the views", min_length=1)
    optimizer: PretrainingOptimizer = key(..., "the optimizer")
    dali: PretrainingDali = key(PretrainingDali(), "NVIDIA DALI")
    evaluation: Evaluation = key(Evaluation(), "measured on the way", identity=False)
    collapse: Collapse = key(Collapse(), "the collapse monitor", identity=False)
    knn_eval: KnnEval = key(KnnEval(), "the host's own k-NN", identity=False)
    auto_umap: AutoUmap = key(AutoUmap(), "the host's own pictures", identity=False)
    initial_checkpoint: Optional[PathText] = key(
        None, "a .ckpt file whose weights a new run begins with; epochs and schedule begin anew"
    )
    debug_augmentations: Switch = key(False, "print the views' transforms", identity=False)

    @property
    def large_crops(self) -> int:
        """Views as large as the first pipeline's."""
        size = self.augmentations[0].crop_size
        return sum(view.num_crops for view in self.augmentations if view.crop_size == size)

    @property
    def small_crops(self) -> int:
        """The other views."""
        return sum(view.num_crops for view in self.augmentations) - self.large_crops

    @property
    def patches(self) -> Optional[PatchKwargs]:
        """The sizes of the patches that a method looks at besides views; None where it looks at none."""
        kwargs: Any = self.method_kwargs
        return kwargs if isinstance(kwargs, PatchKwargs) else None

    @model_validator(mode="after")
    def _pil_where_it_is_needed(self) -> Pretraining:
        if self.data.format != "dali":
            return self
        if self.patches is not None:
            raise rule(
                f"{self.method} looks at patches, which Pillow cuts and NVIDIA DALI's loader does not; set "
                "data.format=image_folder."
            )
        for i, view in enumerate(self.augmentations):
            if view.rand_augment.num_ops:
                raise rule(
                    f"augmentations[{i}].rand_augment is done with Pillow, which NVIDIA DALI's loader does without; "
                    f"set augmentations.{i}.rand_augment.num_ops=0, or data.format=image_folder."
                )
        return self

    @model_validator(mode="after")
    def _its_views(self) -> Pretraining:
        wanted = None if self.method in _OTHER_VIEWS else self.wanted_views
        if wanted not in (None, self.large_crops):
            raise rule(
                f"{self.method} needs {wanted} large view{'s' * (wanted != 1)}, but the augmentations make "
                f"{self.large_crops} of {self.augmentations[0].crop_size} pixels (views as large as the first "
                "pipeline's are the large ones)."
            )
        if self.small_crops and not self.takes_small_views:
            raise rule(
                f"{self.method} takes no small views, but the augmentations make {self.small_crops} smaller than the "
                f"first pipeline's {self.augmentations[0].crop_size} pixels; leave their pipelines out."
            )
        return self

    @model_validator(mode="after")
    def _anew_or_on(self) -> Pretraining:
        if self.initial_checkpoint is not None and self.resume_from_checkpoint is not None:
            raise rule(
                "initial_checkpoint begins a new run and resume_from_checkpoint goes on with an old one; leave out one "
                "of them."
            )
        return self


class CarpPretraining(Pretraining):
    """A pretraining of CARP."""

    method_kwargs: CarpKwargs = key(CarpKwargs(), "CARP's own keys")  # type: ignore[assignment]


class CarlPretraining(Pretraining):
    """A pretraining of CARL."""

    method_kwargs: CarlKwargs = key(CarlKwargs(), "CARL's own keys")  # type: ignore[assignment]


class Simclrv2Pretraining(Pretraining):
    """A pretraining of SimCLR v2."""

    takes_small_views: ClassVar[bool] = False

    method_kwargs: Simclrv2Kwargs = key(  # type: ignore[assignment]
        Simclrv2Kwargs(), "SimCLR v2's own keys"
    )


class SupervisedPretraining(Pretraining):
    """Training with labels from random weights."""

    wanted_views: ClassVar[Optional[int]] = None
    takes_small_views: ClassVar[bool] = False

    method_kwargs: SupervisedKwargs = key(SupervisedKwargs(), "none")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _it_has_labels(self) -> SupervisedPretraining:
        if self.data.no_labels:
            raise rule(
                "supervised learns from labels, and data.no_labels=True has none; give a data.train_path with one "
                "folder a class and data.no_labels=False."
            )
        return self


class _OverTheWholeSet(Pretraining):
    """A pretraining of a method that goes over all training images at an epoch's start."""

    @model_validator(mode="after")
    def _not_with_dali(self) -> _OverTheWholeSet:
        if self.data.format == "dali":
            raise rule(
                f"{self.method} goes over all training images at an epoch's start and knows each by its number, which "
                "NVIDIA DALI's loader does not serve; set data.format=image_folder."
            )
        return self


class SelaPretraining(_OverTheWholeSet):
    """A pretraining of SeLa v2."""

    method_kwargs: SelaKwargs = key(SelaKwargs(), "SeLa v2's own keys")  # type: ignore[assignment]


class PclPretraining(_OverTheWholeSet):
    """A pretraining of PCL v2, on a query and a key."""

    takes_small_views: ClassVar[bool] = False

    method_kwargs: PclKwargs = key(PclKwargs(), "PCL v2's own keys")  # type: ignore[assignment]


class PirlPretraining(Pretraining):
    """A pretraining of PIRL, on one view and nine patches."""

    wanted_views: ClassVar[Optional[int]] = 1
    takes_small_views: ClassVar[bool] = False

    method_kwargs: PirlKwargs = key(PirlKwargs(), "PIRL's own keys")  # type: ignore[assignment]


class InfominPretraining(Pretraining):
    """A pretraining of InfoMin Aug., on two views and nine patches."""

    takes_small_views: ClassVar[bool] = False

    method_kwargs: InfominKwargs = key(  # type: ignore[assignment]
        InfominKwargs(), "InfoMin's own keys"
    )


#: Methods of ours -> the settings that hold their keys; the keys of the others are the host's to know.
OWN: Dict[str, Type[Pretraining]] = {
    "carp": CarpPretraining,
    "carl": CarlPretraining,
    "pclv2": PclPretraining,
    "selav2": SelaPretraining,
    "simclrv2": Simclrv2Pretraining,
    "supervised": SupervisedPretraining,
    "pirl": PirlPretraining,
    "infomin": InfominPretraining,
}


def model_of(method: Any) -> Type[Pretraining]:
    """The settings of a method's pretraining."""
    return OWN.get(method, Pretraining) if isinstance(method, str) else Pretraining


def read_pretraining(values: Mapping[Any, Any]) -> Pretraining:
    """The settings of a pretraining.

    Args:
        values: nested keys, as YAML gives them.

    Raises:
        UserError: the first mistake.
    """
    return read(model_of(values.get("method")), values)
