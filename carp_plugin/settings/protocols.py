"""What the protocols on frozen features are told: a node each, for ``main_evaluate.py`` and comparisons."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from carp_plugin.settings.kinds import Count, PathText, Positive, Seed
from carp_plugin.settings.model import Settings, key
from carp_plugin.settings.offline import Offline
from carp_plugin.settings.parts import FeatureKind

#: Names of the protocols, and of their nodes.
Protocol = Literal["knn", "logistic"]


class Neighbours(Settings):
    """k-NN, appendix C.3 of the paper."""

    k: Tuple[Count, ...] = key((10, 20, 100, 200), "numbers of neighbours", min_length=1)
    temperature: Positive = key(0.07, "tau of the votes")


class Logistic(Settings):
    """Multinomial logistic regression on features."""

    C: Tuple[Positive, ...] = key(
        (0.01, 0.1, 1, 10, 100, 1000),
        "inverse strengths of the L2 penalty; the best on held-out training images",
        min_length=1,
    )
    max_iterations: Count = key(1000, "of L-BFGS")


class Others(Settings):
    """The protocols on frozen features besides k-NN, by their names."""

    logistic: Logistic = key(Logistic(), "logistic regression")


class Protocols(Others):
    """Every protocol on frozen features, by its name."""

    knn: Neighbours = key(Neighbours(), "k-NN")


class Evaluate(Protocols, Offline):
    """Protocols on the frozen features of a checkpoint, which are computed once for all of them."""

    protocols: Tuple[Protocol, ...] = key(("knn", "logistic"), "which protocols", min_length=1)
    feature_type: Tuple[FeatureKind, ...] = key(("backbone",), "features", min_length=1)
    feature_dtype: Literal["float16", "float32"] = key("float32", "how unit rows are kept")
    seed: Seed = key(0, "of every draw")
    json_file: Optional[PathText] = key(None, "writes the result to this file too")
