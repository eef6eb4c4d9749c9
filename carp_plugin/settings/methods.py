"""The keys of our methods besides CARP, each with its defaults: the paper's, or a choice where the record is silent."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Optional, Tuple

import annotated_types as at
from pydantic import model_validator

from carp_plugin.settings.kinds import (
    Count,
    Index,
    NotNegative,
    Pixels,
    Positive,
    Probability,
    Share,
    Switch,
)
from carp_plugin.settings.model import Settings, key, rule

#: One number an item, at least one.
Counts = Annotated[Tuple[Count, ...], at.MinLen(1)]


class SelaKwargs(Settings):
    """The keys of SeLa v2: appendix D of the SwAV paper, and what it leaves open."""

    owner: ClassVar[str] = "selav2"

    proj_hidden_dim: Count = key(2048, "neurons of the projector's hidden layer")
    proj_output_dim: Count = key(128, "D, size of an embedding")
    num_prototypes: Counts = key((3000, 3000, 3000), "K of each head")
    temperature: Positive = key(0.1, "T of the softmax that is trained")
    epsilon: Positive = key(
        0.05, "entropy of the assignment; unpublished: SwAV's, and SeLa's is 0.004 at T = 0.1"
    )
    labels: Literal["hard", "soft"] = key(
        "hard", "what is trained on: the plan's largest entry, or its row; unpublished"
    )
    sinkhorn_iterations: Count = key(100, "of the assignment, at most")
    sinkhorn_tolerance: NotNegative = key(
        0.01, "largest deviation of a cluster's share from 1 / K, relative, that ends it"
    )
    normalize_prototypes: Switch = key(True, "unit rows after every step, as SwAV's; unpublished")
    freeze_prototypes_epochs: Index = key(
        1, "in which prototypes do not move, as SwAV's; unpublished", unit="epochs"
    )


class PclKwargs(Settings):
    """The keys of PCL v2."""

    owner: ClassVar[str] = "pclv2"

    proj_hidden_dim: Count = key(2048, "neurons of the projector's hidden layer")
    proj_output_dim: Count = key(128, "D, size of an embedding")
    temperature: Positive = key(0.2, "T of the instance loss, and mean of the concentrations")
    queue_size: Count = key(16384, "keys of earlier batches that an image is told from")
    num_clusters: Counts = key(
        (25000, 50000, 100000), "k of each clustering, at most half the images"
    )
    num_negatives: Index = key(
        16384, "prototypes of each clustering that an image is told from, besides the batch's"
    )
    epoch_prototypes_start: Index = key(
        20, "before it the instance loss is alone: a tenth of all epochs", unit="epochs"
    )
    prototype_weight: NotNegative = key(1.0, "of the prototypes' loss; 0 clusters nothing")
    kmeans_iterations: Count = key(20, "of k-means")
    kmeans_redo: Count = key(5, "starts of k-means, of which the best is kept")


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
