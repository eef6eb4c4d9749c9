"""The protocols on frozen features, by name; a module each, of the shape of ``evaluation/shape.py``."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple

from carp_plugin.evaluation.protocols import knn, logistic
from carp_plugin.evaluation.shape import Images, Result


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
        title: for people.
        measure: (images, its node of the settings) -> column -> result.
        labelled: whether it reads the labelled training and validation images, and not images of its own.
        headline: its first score, for people.
    """

    title: str
    measure: Callable[[Images, Any], Dict[str, Result]]
    labelled: bool = True
    headline: str = ""


#: Name, which is that of its node in the settings -> protocol.
PROTOCOLS: Dict[str, Protocol] = {
    "knn": Protocol("k-NN", knn.measure),
    "logistic": Protocol("logistic regression", logistic.measure),
}
