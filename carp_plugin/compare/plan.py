"""Which runs a comparison consists of, and the whole settings of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from carp_plugin.data.datasets import counts
from carp_plugin.data.folders import check_data
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.methods.known import methods
from carp_plugin.settings.comparison import Asked, Comparison
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.pretraining import Pretraining, read_pretraining
from carp_plugin.settings.reading import read
from carp_plugin.settings.variants import Variant, nested
from carp_plugin.terminal import say
from carp_plugin.training.pretraining import check_run


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        label: how the run is called in tables: that of its row, and the number of its trial in a search.
        method: a key of the host's METHODS.
        seed: of the run.
        settings: everything that decides what the run's numbers are, as json takes it: ``pretrain``, ``knn``,
            ``linear``, ``gallery``, ``threads``.
        trial: the settings that a search tries, None outside of one.
    """

    label: str
    method: str
    seed: int
    settings: Dict[str, Any] = field(repr=False)
    trial: Optional[Dict[str, Any]] = None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.label}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison that can begin.

    Attributes:
        settings: its own keys.
        rows: what is compared.
        first: the pretraining of its first run, whose data and evaluation are those of all.
        values: everything that was written, as json takes it.
        root: folder of its results.
        jobs: the runs, seed by seed, so that a comparison broken off has whole seeds.
    """

    settings: Comparison
    rows: List[Variant]
    first: Pretraining
    values: Dict[str, Any] = field(repr=False)
    root: Path
    jobs: List[Job] = field(repr=False)


def plan(asked: Asked) -> Plan:
    """Checks a comparison and lists its runs.

    Args:
        asked: see ``scripts/compare/photos.yaml``.

    Raises:
        UserError: the first mistake found, in the comparison or in the pretraining of any of its methods.
    """
    settings, shared = asked.comparison, copy.deepcopy(dict(asked.shared))
    rows = asked.rows()
    _check_methods(settings, rows)
    root = Path(settings.dir or f"results/{settings.name}")
    check_run(_read(settings, shared, rows[0], {}))  # the data stand and are sound
    if settings.holdout:
        shared["data"]["holdout"] = settings.holdout.model_dump(mode="json")
        check_data(_read(settings, shared, rows[0], {}).data)
    first = _read(settings, shared, rows[0], {})
    settings = _with_fitting_k(settings, first)
    _check_trained(settings)
    for row in rows:
        for trial in _trials(settings, row):
            run = _read(settings, shared, row, trial or {})
            _check_measured_alike(row, run, first)
            check_run(run)
    jobs = [
        _job(settings, shared, rows, row, number, trial, seed)
        for seed in settings.seeds
        for row in rows
        for number, trial in enumerate(_trials(settings, row))
    ]
    values = {**shared, **settings.model_dump(mode="json"), "dir": str(root)}
    return Plan(settings, rows, first, values, root, jobs)


def _check_methods(settings: Comparison, rows: Sequence[Variant]) -> None:
    known = methods()
    for row in rows:
        if row.method not in known:
            key = "methods" if row.label == row.method else f"variants.{row.label}.method"
            raise UserError(f"{key}: {row.method} is unknown{did_you_mean(row.method, known)}")
    for method in (*settings.settings, *(settings.trials or {})):
        if method not in known:
            raise UserError(f"settings.{method}: unknown method{did_you_mean(method, known)}")


def _check_measured_alike(row: Variant, read: Pretraining, first: Pretraining) -> None:
    """Numbers that stand in one column are of the same images and neighbours."""
    for key, theirs, ours in (
        ("data.dataset", read.data.dataset, first.data.dataset),
        ("data.val_path", read.data.val_path, first.data.val_path),
        ("evaluation.k", read.evaluation.k, first.evaluation.k),
    ):
        if theirs != ours:
            raise UserError(
                f"{row.label} would be measured otherwise than the first row ({key} is {theirs}, there {ours}); "
                "set it for all rows alike."
            )


def _with_fitting_k(settings: Comparison, first: Pretraining) -> Comparison:
    """The comparison with as many neighbours as there are training images; what does not fit is left out, and said."""
    if first.data.no_labels:
        raise UserError("a comparison needs labelled images; set data.no_labels=False.")
    if first.data.val_path is None:
        raise UserError(
            "a comparison needs labelled images; give data.val_path, with one folder a class as in data.train_path."
        )
    if settings.knn is None:
        return settings
    images, _ = counts(first.data)
    fitting = tuple(k for k in settings.knn.k if k <= images)
    if not fitting:
        raise UserError(
            f"knn.k={list(settings.knn.k)} are more than the {images} training images; give smaller ones, as in "
            "knn.k=[10,20]."
        )
    if len(fitting) < len(settings.knn.k):
        left_out = ", ".join(str(k) for k in settings.knn.k if k > images)
        say(f"warning: k = {left_out} left out, for there are {images} training images.", "yellow")
    return settings.model_copy(update={"knn": settings.knn.model_copy(update={"k": fitting})})


def _check_trained(settings: Comparison) -> None:
    """What is evaluated, and the images, are each run's own; here any do."""
    own = {"name": "linear", "pretrained_feature_extractor": "each run's"}
    data = {"dataset": "custom", "train_path": "each run's", "val_path": "each run's"}
    for name, model in (("linear", Linear), ("finetune", Finetune)):
        given = getattr(settings, name)
        if given is not None:
            own["name"] = name
            read(model, merged(given, {**own, "data": data}), within=f"{name}.")


def _trials(settings: Comparison, row: Variant) -> List[Optional[Dict[str, Any]]]:
    if not settings.trials:
        return [None]
    return [dict(trial) for trial in settings.trials[row.label]]


def _read(
    settings: Comparison, shared: Mapping[str, Any], row: Variant, changes: Mapping[str, Any]
) -> Pretraining:
    return read_pretraining(_values(settings, shared, row, changes, settings.seeds[0]))


def _values(
    settings: Comparison,
    shared: Mapping[str, Any],
    row: Variant,
    changes: Mapping[str, Any],
    seed: int,
) -> Dict[str, Any]:
    """The keys of one run's pretraining: what all share, then its method's, then its row's, then the trial's."""
    # Where a run's checkpoint goes and what it resumes from is the worker's business.
    ours = {
        "method": row.method,
        "seed": seed,
        "checkpoint": {"enabled": False},
        "auto_resume": {"enabled": False},
    }
    of_method = settings.settings.get(row.method) or {}
    return merged({"name": row.label}, shared, of_method, row.own, nested(changes), ours)


def merged(*parts: Mapping[str, Any]) -> Dict[str, Any]:
    """Nested keys on top of each other; a later value goes before an earlier one, lists as a whole."""
    result: Dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, dict):
                result[key] = merged(below, value)
            else:
                result[key] = copy.deepcopy(value)
    return result


def _job(
    settings: Comparison,
    shared: Mapping[str, Any],
    rows: Sequence[Variant],
    row: Variant,
    number: int,
    trial: Optional[Dict[str, Any]],
    seed: int,
) -> Job:
    label = row.label if trial is None else f"{row.label}-{number}"
    pretrain = {**_values(settings, shared, row, trial or {}, seed), "name": label}
    own = settings.model_dump(mode="json")
    gallery = next((one for one in rows if one.method == "carp"), None)
    decides = {
        "pretrain": pretrain,
        "knn": own["knn"],
        "linear": own["linear"],
        "gallery": own["gallery"] if row is gallery else None,
        "threads": settings.threads,
    }
    if settings.finetune is not None:
        # From labels alone it is the same for every row: the first one's run has it.
        decides["finetune"] = {"keys": own["finetune"], "labels_alone": row is rows[0]}
    if settings.protocols:
        decides["protocols"] = {name: own[name] for name in settings.protocols if name != "knn"}
    return Job(label, row.method, seed, decides, trial)
