"""What a comparison is told: its own keys, and those of pretraining, the same for every method."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from pydantic import model_validator

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.settings.kinds import (
    FileName,
    Free,
    Int,
    PathText,
    Seed,
    Switch,
    Text,
)
from carp_plugin.settings.mistakes import unknown
from carp_plugin.settings.model import Settings, key, rule
from carp_plugin.settings.parts import FeatureKind, Holdout
from carp_plugin.settings.pretraining import CarpPretraining
from carp_plugin.settings.protocols import Neighbours, Others, Protocol
from carp_plugin.settings.reading import read
from carp_plugin.settings.variants import Paper, Variant, rows


class KnnProtocol(Neighbours):
    """k-NN, appendix C.3 of the paper."""

    features: Tuple[FeatureKind, ...] = key(("backbone", "projector"), "features", min_length=1)

    @model_validator(mode="after")
    def _backbones_are_compared(self) -> KnnProtocol:
        if "backbone" not in self.features:
            raise rule(
                f"{{at}}features must be [backbone] or [backbone,projector], got {list(self.features)}: the backbone's "
                "are compared."
            )
        return self


class Gallery(Settings):
    """Pictures of CARP's prototypes."""

    rows: Int = key(12, "prototypes", ge=1, le=100)
    columns: Int = key(10, "images of each", ge=1, le=100)


class Comparison(Others):
    """Methods side by side. Whatever else the configuration holds are keys of pretraining."""

    name: FileName = key(..., "of the comparison")
    dir: Optional[PathText] = key(None, "folder of the results; null: results/NAME")
    methods: Tuple[Text, ...] = key(
        ("carp", "byol", "swav", "barlow_twins"),
        "rows that are called as their method; none by default where there are variants",
    )
    variants: Dict[str, Free] = key(
        {},
        "more rows: LABEL -> a node of method, settings (keys of pretraining that are its own), and paper (the number "
        "that a paper has for it)",
    )
    reference: Optional[Text] = key(
        None, "label that the others are compared with; null: carp where it is a row, or the first"
    )
    paper: Optional[Paper] = key(None, "what a paper says of the same rows; null: nothing")
    seeds: Tuple[Seed, ...] = key((0, 1, 2), "each row is trained with each", min_length=1)
    settings: Dict[str, Free] = key({}, "method -> keys of pretraining that are its own")
    jobs: Int = key(1, "runs at a time", ge=1, le=512)
    threads: Optional[Int] = key(None, "of each run; null: torch's choice", ge=1, le=512)
    keep_checkpoints: Switch = key(True, "keep them when a run is evaluated")
    knn: Optional[KnnProtocol] = key(KnnProtocol(), "k-NN; null: none")
    protocols: Tuple[Protocol, ...] = key(
        (), "besides k-NN, on the same frozen features; each has a node of its name"
    )
    linear: Optional[Free] = key(None, "keys of a linear evaluation; null: none")
    finetune: Optional[Free] = key(
        None, "keys of a fine-tuning, of student and teacher and from labels alone; null: none"
    )
    gallery: Optional[Gallery] = key(Gallery(), "prototypes; null: none")
    holdout: Optional[Holdout] = key(None, "training images held out, for a search")
    trials: Optional[Dict[str, Tuple[Free, ...]]] = key(
        None, "method -> settings to try, each a node of dotted keys"
    )

    @model_validator(mode="before")
    @classmethod
    def _variants_are_all(cls, values: Any) -> Any:
        """Whoever lists variants alone compares those."""
        if isinstance(values, Mapping) and values.get("variants") and values.get("methods") is None:
            return {**values, "methods": []}
        return values

    @model_validator(mode="after")
    def _no_run_twice(self) -> Comparison:
        for name in ("methods", "seeds"):
            given: List[Any] = list(getattr(self, name))
            if len(set(given)) < len(given):
                raise rule(f"{name}={given} names one of them twice.")
        return self

    @model_validator(mode="after")
    def _images_are_given(self) -> Comparison:
        if "landmarks" in self.protocols and None in (
            self.landmarks.ground_truth,
            self.landmarks.images,
        ):
            raise rule(
                "protocols=[landmarks] needs landmarks.ground_truth=FILE, such as gnd_roxford5k.pkl, and "
                "landmarks.images=FOLDER, that of its images."
            )
        if "voc07" in self.protocols and self.voc07.root is None:
            raise rule("protocols=[voc07] needs voc07.root=FOLDER, that holds VOCdevkit/VOC2007.")
        return self

    @model_validator(mode="after")
    def _fair_search(self) -> Comparison:
        """A search is fair when every method has as many trials, and useful when it chooses on images it may see."""
        if not self.trials:
            return self
        numbers = {method: len(self.trials.get(method, ())) for method in self.methods}
        if len(set(numbers.values())) > 1 or 0 in numbers.values():
            said = ", ".join(f"{method}: {number}" for method, number in numbers.items())
            raise rule(f"trials must have the same number for every method, got {said}.")
        if self.holdout is None:
            raise rule(
                "trials choose settings, which must not see the images that are reported; "
                "add holdout.fraction and holdout.seed."
            )
        return self


class EveryKey(Comparison, CarpPretraining):
    """Every key that the configuration of a comparison may have; it is never built."""


#: Keys of pretraining that a comparison sets for each run.
_OF_RUNS = {"method": "methods=[carp,byol]", "seed": "seeds=[0,1]"}


class Asked(Settings):
    """A comparison, read.

    Attributes:
        comparison: its own keys.
        shared: the keys of pretraining, as they were written, the same for every method.
    """

    comparison: Comparison
    shared: Free

    def rows(self) -> List[Variant]:
        """Label, method and own keys of each row, in the order of tables."""
        return rows(self.comparison.methods, self.comparison.variants)

    def values(self) -> Dict[str, Any]:
        """Every key and its value, as YAML and json have them."""
        return {**self.shared, **self.comparison.model_dump(mode="json")}


def read_comparison(values: Mapping[Any, Any]) -> Asked:
    """The settings of a comparison.

    Args:
        values: nested keys, as YAML gives them.

    Raises:
        UserError: the first mistake in its own keys; those of pretraining are read run by run.
    """
    own = {name: value for name, value in values.items() if name in Comparison.model_fields}
    shared = {str(name): value for name, value in values.items() if name not in own}
    for name in shared:
        if name in _OF_RUNS:
            raise UserError(
                f"{name} is not a key of a comparison, which has a list of them; give {_OF_RUNS[name]}."
            )
        if name not in EveryKey.model_fields:
            raise UserError(unknown(EveryKey, [name], name))
    asked = Asked(comparison=read(Comparison, own), shared=shared)
    labels = [row.label for row in asked.rows()]
    reference = asked.comparison.reference
    if reference is not None and reference not in labels:
        raise UserError(f"reference={reference} is no row{did_you_mean(reference, labels)}")
    return asked
