"""The keys of our methods besides CARP: each a node ``method_kwargs``."""

from __future__ import annotations

from typing import ClassVar, Optional

from pydantic import model_validator

from carp_plugin.settings.kinds import (
    Count,
    NotNegative,
    Positive,
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
