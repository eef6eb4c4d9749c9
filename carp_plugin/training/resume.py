"""Which earlier run a run goes on from: the newest of the very same settings, and its newest whole checkpoint."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

from carp_plugin.settings.model import Settings, defaults_of, free_keys
from carp_plugin.training.callbacks.checkpoint import damage, in_use
from carp_plugin.training.state import place_in_name

#: What stands in ``args.json`` beside the settings, and tells nothing about what is trained on what.
_BESIDE = ("wandb_run_id",)


class Identity(NamedTuple):
    """What tells one run from another; see :func:`carp_plugin.settings.model.key`.

    Attributes:
        free: dotted keys, nodes among them, that change nothing about what is trained on what. Whatever is not listed
            here makes a run another one, so that a key that is new is compared without anyone thinking of it.
        defaults: dotted key -> what it is where it is absent: an older release may not have known it.
    """

    free: Tuple[str, ...]
    defaults: Mapping[str, Any]


def identity_of(model: Type[Settings]) -> Identity:
    """Of the runs that a kind of settings describes."""
    defaults = json.loads(json.dumps(defaults_of(model)))
    return Identity((*free_keys(model), *_BESIDE), defaults)


class Found(NamedTuple):
    """What to go on from.

    Attributes:
        checkpoint: None to start anew.
        wandb_run_id: of that run, if it had one.
        remarks: sentences about checkpoints that were passed over.
    """

    checkpoint: Optional[Path]
    wandb_run_id: Optional[str]
    remarks: List[str]


def run_to_resume(
    folder: Path, args: Mapping[str, Any], identity: Identity, max_hours: float, lead: bool
) -> Found:
    """Looks for a run of the same settings.

    Args:
        folder: that runs lie in, each in a folder of its own with ``args.json``.
        args: what this run will write to its ``args.json``: the host's configuration and the images.
        identity: what tells runs apart.
        max_hours: a run whose newest checkpoint is older is left alone.
        lead: whether this is the process of rank 0. It alone leaves a run alone that another process is training; the
            other ranks would take their own rank 0 for that process.

    Returns:
        Found: the newest such run's newest checkpoint that is whole.
    """
    remarks: List[str] = []
    wanted = compared(args, identity)
    for checkpoints in _runs(folder, max_hours):
        home = checkpoints[0].parent
        try:
            written = json.loads((home / "args.json").read_text())
        except (OSError, ValueError):  # killed in its first moment, or not ours
            continue
        differing = difference(compared(written, identity), wanted, identity.defaults)
        if differing is not None:
            key, there, here = differing
            if written.get("name") == args.get("name") and not remarks:
                remarks.append(
                    f"not resumed: {home}, a run of other settings ({key} was {there}, is {here})."
                )
            continue
        if lead and in_use(home):
            remarks.append(f"not resumed: {home}, another process is training it.")
            continue
        for path in checkpoints:
            wrong = damage(path)
            if wrong is None:
                return Found(path, written.get("wandb_run_id"), remarks)
            remarks.append(f"{wrong} It is passed over for the one before it.")
    return Found(None, None, remarks)


def _runs(folder: Path, max_hours: float) -> List[List[Path]]:
    """The checkpoints of every run, the furthest first; the run that was trained last first."""
    runs: Dict[Path, List[Path]] = {}
    for path in folder.rglob("*.ckpt"):
        runs.setdefault(path.parent, []).append(path)
    trained = {home: max(map(_written_at, found)) for home, found in runs.items()}
    youngest = time.time() - max_hours * 3600
    return [
        sorted(runs[home], key=place_in_name, reverse=True)
        for home in sorted(runs, key=trained.__getitem__, reverse=True)
        if trained[home] >= youngest
    ]


def _written_at(path: Path) -> float:
    """When a checkpoint was written; a run that goes on beside this one may just have superseded and deleted it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def compared(args: Mapping[str, Any], identity: Identity) -> Dict[str, Any]:
    """Dotted key -> value of what makes a run what it is, as JSON gives it back.

    Args:
        args: what ``args.json`` holds.
        identity: what tells runs apart.
    """
    flat = _flat(json.loads(json.dumps(dict(args))))
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == free or key.startswith(free + ".") for free in identity.free)
    }
    # which cards does not matter, how many does
    kept["devices"] = len(kept["devices"]) if isinstance(kept.get("devices"), list) else None
    return kept


def _flat(node: Mapping[str, Any], path: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            flat.update(_flat(value, f"{path}{key}."))
        else:
            flat[f"{path}{key}"] = value
    return flat


def difference(
    there: Mapping[str, Any], here: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Optional[Tuple[str, Any, Any]]:
    """The first key in which two runs differ and its two values, None where there is none.

    A key that one of them lacks, or has as null, is its default there, for an older release may not have known it.
    """
    for key in sorted({*there, *here}):
        default = defaults.get(re.sub(r"\.\d+\.", ".0.", key))  # the items of a list have the same
        was, now = (_or_default(run.get(key), default) for run in (there, here))
        if was != now:
            return key, was, now
    return None


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value
