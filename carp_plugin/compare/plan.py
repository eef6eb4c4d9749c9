"""Which runs a comparison consists of, and the whole configuration of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from omegaconf import DictConfig, OmegaConf

from carp_plugin import register
from carp_plugin.data.holdout import hold_out
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import METHODS
from carp_plugin.settings import pretraining as config
from carp_plugin.settings.checks import check_keys
from carp_plugin.settings.pretraining import checked, plain
from carp_plugin.settings.values import (
    NODE,
    SWITCH,
    TEXT,
    Value,
    check_values,
    list_of,
    number,
    or_null,
    whole,
)

#: The keys of a comparison itself, with their defaults; all others are pretraining's, the same for every method.
DEFAULTS: Dict[str, Any] = {
    "dir": None,  # results/NAME
    "methods": ["carp", "byol", "swav", "barlow_twins"],
    "seeds": [0, 1, 2],
    "settings": {},
    "jobs": 1,
    "threads": None,
    "keep_checkpoints": True,
    "knn": {"k": [10, 20, 100, 200], "temperature": 0.07, "features": ["backbone", "projector"]},
    "linear": None,
    "gallery": {"rows": 12, "columns": 10},
    "holdout": None,
    "trials": None,
}

_NODES = {
    "knn": ("k", "temperature", "features"),
    "gallery": ("rows", "columns"),
    "holdout": ("fraction", "seed"),
}
_PART = Value(
    "a number between 0 and 1, and neither",
    lambda given: given != 0 and number(0, 1, 1).fits(given),
)
_NODES_LISTED = Value(
    "a list of nodes", lambda given: OmegaConf.is_list(given) and all(map(NODE.fits, given))
)
_VALUES: Dict[str, Value] = {
    "dir": or_null(TEXT),
    "methods": list_of(TEXT),
    "seeds": list_of(whole(0, 2**32 - 1)),
    "settings": or_null(NODE),
    "jobs": whole(1, 512),
    "threads": or_null(whole(1, 512)),
    "keep_checkpoints": SWITCH,
    "knn": or_null(NODE),
    "knn.k": list_of(whole(1)),
    "knn.temperature": number(0, without=0),
    "knn.features": list_of(TEXT),
    "linear": or_null(NODE),
    "gallery": or_null(NODE),
    "gallery.rows": whole(1, 100),
    "gallery.columns": whole(1, 100),
    "holdout": or_null(NODE),
    "holdout.fraction": _PART,
    "holdout.seed": whole(0),
    "trials": or_null(NODE),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        label: how the run is called in tables: the method, and the number of its trial in a search.
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
        cfg: with every default filled in.
        root: folder of its results.
        jobs: the runs, seed by seed, so that a comparison broken off has whole seeds.
    """

    cfg: DictConfig
    root: Path
    jobs: List[Job] = field(repr=False)


def plan(cfg: DictConfig) -> Plan:
    """Checks a comparison's configuration and lists its runs; makes the split of a search.

    Args:
        cfg: as Hydra composed it; see ``scripts/compare/photos.yaml``.

    Raises:
        UserError: the first mistake found, in the comparison or in the pretraining of any of its methods.
    """
    register()
    OmegaConf.set_struct(cfg, False)
    for key, default in DEFAULTS.items():
        if key not in cfg:
            cfg[key] = copy.deepcopy(default)
    if OmegaConf.is_missing(cfg, "name") or not cfg.get("name"):
        raise UserError(
            "name is missing from the configuration; add it, results go to results/NAME."
        )
    cfg.dir = cfg.dir or f"results/{cfg.name}"
    _check(cfg)
    root = Path(str(cfg.dir))
    checked(_pretraining(cfg, cfg.methods[0], {}, cfg.seeds[0]))  # the data stand and are sound
    if cfg.holdout:
        train, val = hold_out(
            Path(cfg.data.train_path), root / "holdout", cfg.holdout.fraction, cfg.holdout.seed
        )
        cfg.data.train_path, cfg.data.val_path, cfg.data.prepare = str(train), str(val), None
    _check_bank(cfg)
    for method in cfg.methods:
        for trial in _trials(cfg, method):
            checked(_pretraining(cfg, method, trial or {}, cfg.seeds[0]))
    jobs = [
        _job(cfg, method, number, trial, seed)
        for seed in cfg.seeds
        for method in cfg.methods
        for number, trial in enumerate(_trials(cfg, method))
    ]
    return Plan(cfg, root, jobs)


def known_keys() -> List[str]:
    """Every dotted key that a comparison may have: its own and those of pretraining."""
    return [*DEFAULTS, *(key for key in config.known_keys() if key not in ("method", "seed"))]


def _check(cfg: DictConfig) -> None:
    for key, known_below in _NODES.items():
        if isinstance(cfg[key], DictConfig):
            check_keys(cfg[key], dict.fromkeys(known_below), f"{key}.")
    check_values(cfg, _VALUES)
    for key, kind in (("settings", NODE), ("trials", _NODES_LISTED)):
        if cfg[key] is not None:
            check_values(cfg[key], dict.fromkeys(map(str, cfg[key]), kind), f"{key}.")
    known = [name for name in METHODS if name not in ("base", "linear")]
    for key in ("methods", "seeds"):
        if len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key}={list(cfg[key])} names one of them twice.")
    for method in cfg.methods:
        if method not in known:
            raise UserError(f"methods: {method} is unknown{did_you_mean(str(method), known)}")
    for key in (*cfg.settings, *(cfg.trials or {})):
        if key not in known:
            raise UserError(f"settings.{key}: unknown method{did_you_mean(str(key), known)}")
    if cfg.knn is not None:
        kinds = list(cfg.knn.features)
        if "backbone" not in kinds or set(kinds) - {"backbone", "projector"}:
            raise UserError(
                f"knn.features must be [backbone] or [backbone,projector], got {kinds}: the backbone's are compared."
            )
    if cfg.trials:
        _check_trials(cfg)


def _check_bank(cfg: DictConfig) -> None:
    if cfg.data.val_path is None or cfg.data.get("no_labels"):
        raise UserError(
            "a comparison needs labelled images; give data.val_path, with one folder a class as in data.train_path."
        )
    images = count_images(cfg.data.train_path)
    most = max(cfg.knn.k, default=0) if cfg.knn else 0
    if most > images:
        raise UserError(
            f"knn.k={most} is more than the {images} training images; give smaller ones, as in knn.k=[10,20]."
        )


def _check_trials(cfg: DictConfig) -> None:
    """A search is fair when every method has as many trials, and useful when it chooses on images it may see."""
    numbers = {method: len(cfg.trials.get(method, [])) for method in cfg.methods}
    if len(set(numbers.values())) > 1 or 0 in numbers.values():
        raise UserError(
            "trials must have the same number for every method, got "
            f"{', '.join(f'{method}: {number}' for method, number in numbers.items())}."
        )
    if not cfg.holdout:
        raise UserError(
            "trials choose settings, which must not see the images that are reported; "
            "add holdout.fraction and holdout.seed."
        )


def count_images(root: str) -> int:
    """Files in the class folders of an ImageFolder."""
    return sum(path.is_file() for path in Path(root).glob("*/*"))


def _trials(cfg: DictConfig, method: str) -> List[Optional[Dict[str, Any]]]:
    if not cfg.trials:
        return [None]
    return [plain(trial) for trial in cfg.trials[method]]


def _pretraining(cfg: DictConfig, method: str, changes: Dict[str, Any], seed: int) -> DictConfig:
    """The pretraining configuration of one run: what all share, then the method's own, then the trial's."""
    shared = OmegaConf.create(
        {key: value for key, value in plain(cfg).items() if key not in DEFAULTS}
    )
    own = cfg.settings.get(method) or {}
    # Where a run's checkpoint goes and what it resumes from is the worker's business.
    ours = {
        "method": method,
        "seed": seed,
        "checkpoint": {"enabled": False},
        "auto_resume": {"enabled": False},
    }
    merged = OmegaConf.merge(shared, own, ours)
    for key, value in changes.items():
        OmegaConf.update(merged, key, value, force_add=True)
    return merged  # type: ignore[return-value]


def _job(
    cfg: DictConfig, method: str, number: int, trial: Optional[Dict[str, Any]], seed: int
) -> Job:
    label = method if trial is None else f"{method}-{number}"
    pretrain = _pretraining(cfg, method, trial or {}, seed)
    pretrain.name = label
    settings = {
        "pretrain": plain(pretrain),
        "knn": cfg.knn and plain(cfg.knn),
        "linear": cfg.linear and plain(cfg.linear),
        "gallery": plain(cfg.gallery) if cfg.gallery and method == "carp" else None,
        "threads": cfg.threads,
    }
    return Job(label, method, seed, settings, trial)
