"""The keys of our methods besides CARP: each a node ``method_kwargs``."""

from __future__ import annotations

from typing import ClassVar, Literal, Optional

from pydantic import model_validator

from carp_plugin.settings.kinds import (
    Count,
    NotNegative,
    Pixels,
    Positive,
    Probability,
    Share,
    Switch,
)
from carp_plugin.settings.model import Settings, key, rule


class CarlKwargs(Settings):
    """The keys of CARL. Its own settings are not public: the defaults are those of CARP, with fewer prototypes."""

    owner: ClassVar[str] = "carl"

    proj_hidden_dim: Count = key(2048, "neurons of the projector's hidden layers")
    proj_output_dim: Count = key(256, "D, size of an embedding")
    proj_layers: Count = key(
        3, "linear layers of the projector; an assigner that is an MLP is a longer projector"
    )
    num_prototypes: Count = key(1024, "K; not many more than the rows of a global batch")
    entropy_weight: NotNegative = key(1.0, "lambda of the entropy gap (eq. 2)")
    first_entropy_weight: Optional[NotNegative] = key(
        None, "lambda at the first step, from where it moves to entropy_weight; null: the same"
    )
    entropy_epochs: NotNegative = key(
        0.0, "how long lambda moves, in a straight line", unit="epochs"
    )
    normalize_prototypes: Switch = key(True, "unit rows, or a plain linear layer")

    @model_validator(mode="after")
    def _a_way_to_go(self) -> CarlKwargs:
        if (self.first_entropy_weight is None) != (self.entropy_epochs == 0):
            raise rule(
                "{at}first_entropy_weight and {at}entropy_epochs go together: where lambda begins, and for how many "
                "epochs it moves; give both, or neither."
            )
        return self


class Simclrv2Kwargs(Settings):
    """The keys of SimCLR v2: the head of the authors' release."""

    owner: ClassVar[str] = "simclrv2"

    proj_hidden_dim: Count = key(2048, "neurons of the projector's hidden layers")
    proj_output_dim: Count = key(128, "D, size of an embedding")
    proj_layers: Count = key(3, "linear layers of the projector")
    proj_batch_norm: Switch = key(
        True, "batch norm behind each layer, which then has no bias; False: biases"
    )
    temperature: Positive = key(0.1, "T")


class SupervisedKwargs(Settings):
    """Supervised training has no keys of its own."""

    owner: ClassVar[str] = "supervised"


class PatchKwargs(Settings):
    """The keys of methods that look at nine patches of an image."""

    #: Whether the views' steps behind the crop distort each patch on its own.
    distorts_patches: ClassVar[bool] = False

    jigsaw_size: Pixels = key(255, "side of the crop that is cut into 3 x 3 cells", unit="pixels")
    jigsaw_min_scale: Share = key(0.6, "smallest part of the image's area in that crop")
    patch_size: Pixels = key(64, "side of a patch, a random crop of its cell", unit="pixels")

    @model_validator(mode="after")
    def _a_patch_fits_its_cell(self) -> PatchKwargs:
        size, patch = self.jigsaw_size, self.patch_size
        if size % 3 or 3 * patch > size:
            fits = 3 * max(patch, -(-size // 3))
            raise rule(
                f"{{at}}jigsaw_size={size} is cut into 3 x 3 cells, and {{at}}patch_size={patch} must fit in one; it "
                f"must be a multiple of 3, of at least 3 patches: {{at}}jigsaw_size={fits} would do."
            )
        return self


class PirlKwargs(PatchKwargs):
    """The keys of PIRL."""

    owner: ClassVar[str] = "pirl"
    distorts_patches: ClassVar[bool] = True

    head: Literal["linear", "mlp"] = key(
        "linear", "projector: of the paper, or of VISSL's MLP runs"
    )
    proj_hidden_dim: Count = key(2048, "mlp: neurons of the hidden layer")
    proj_output_dim: Count = key(128, "D, size of an embedding and of a row of the memory")
    loss: Literal["nce", "cross_entropy"] = key(
        "nce", "noise-contrastive estimation as in the paper, or InfoNCE"
    )
    temperature: Positive = key(0.07, "T")
    patch_weight: Probability = key(0.5, "of the patches' loss, the images' has the rest")
    num_negatives: Count = key(32000, "K, drawn from the memory with replacement")
    shared_negatives: Switch = key(
        True, "one draw for all images of a step; False, as in the paper: one for each"
    )
    memory_momentum: Probability = key(0.5, "how much of a row stays when its image was seen")


class InfominKwargs(PatchKwargs):
    """The keys of InfoMin Aug."""

    owner: ClassVar[str] = "infomin"

    proj_hidden_dim: Count = key(2048, "neurons of the heads' hidden layers")
    proj_output_dim: Count = key(128, "D, size of an embedding")
    temperature: Positive = key(0.15, "T")
    beta: Probability = key(0.5, "weight of the patches' loss; 0 is MoCo v2")
    queue_size: Count = key(65536, "K, keys that are kept")
    symmetric: Switch = key(
        False, "both views are query and key, as in the host's mocov2plus; False as in the release"
    )
