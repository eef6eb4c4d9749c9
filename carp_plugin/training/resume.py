"""Which earlier run a run goes on from: the newest of the very same settings, and its newest whole checkpoint."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

import torch

from carp_plugin.errors import typed
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.model import Settings, defaults_of, free_keys
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.training.callbacks.checkpoint import damage, in_use
from carp_plugin.training.state import place_in_name

#: What stands in ``args.json`` beside the settings, and tells nothing about what is trained on what.
_BESIDE = ("wandb_run_id", "machine")

#: Where something lies -> what it is. Two runs with the same there are one, wherever each found it.
_KNOWN_BY = {
    "data.train_path": "images_fingerprint",
    "data.val_path": "val_images_fingerprint",
    "pretrained_feature_extractor": "features.sha256",
    "labels.file": "subset.file_sha256",
}
_NAMED = 8  # settings in a sentence

Difference = Tuple[str, Any, Any]


class Identity(NamedTuple):
    """What tells one run from another; see :func:`carp_plugin.settings.model.key`.

    Attributes:
        free: dotted keys, nodes among them, that change nothing about what is trained on what. Whatever is not listed
            here makes a run another one, so that a key that is new is compared without anyone thinking of it.
        defaults: dotted key -> what it is where it is absent: an older release may not have known it.
        scaled: dotted keys that ``args.json`` has multiplied by the batch of all processes / 256.
    """

    free: Tuple[str, ...]
    defaults: Mapping[str, Any]
    scaled: Tuple[str, ...] = ()


def identity_of(model: Type[Settings]) -> Identity:
    """Of the runs that a kind of settings describes."""
    defaults = json.loads(json.dumps(defaults_of(model)))
    scaled: Tuple[str, ...] = ()
    if issubclass(model, Pretraining):
        scaled = ("optimizer.lr", "optimizer.classifier_lr")
    elif issubclass(model, Linear):
        scaled = ("optimizer.lr",)
    return Identity((*free_keys(model), *_BESIDE), defaults, scaled)


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
    other: List[str] = []
    wanted = compared(args, identity)
    for age, checkpoints in _runs(folder):
        home = checkpoints[0].parent
        try:
            written = json.loads((home / "args.json").read_text())
        except (OSError, ValueError) as error:  # killed in its first moment, or not ours
            if checkpoints[0].name.startswith(f"{args.get('name')}-"):
                remarks.append(
                    f"not resumed: {home}, whose args.json cannot be read ({error}); name its checkpoint with "
                    f"{typed('resume_from_checkpoint', str(checkpoints[0]))} to go on from it."
                )
            continue
        differing = differences(compared(written, identity), wanted, identity)
        if differing:
            if written.get("name") == args.get("name") and age <= max_hours and not other:
                other.append(
                    f"not resumed: {home}, a run of other settings ({in_words(differing)})."
                )
            continue
        if age > max_hours:
            remarks.append(
                f"not resumed: {home}, a run of the same settings whose last checkpoint is {age:.1f} hours old; "
                f"auto_resume.max_hours={math.ceil(age) + 1} would have gone on from it."
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
    return Found(None, None, other + remarks)


def _runs(folder: Path) -> List[Tuple[float, List[Path]]]:
    """Every run's age in hours and its checkpoints, the furthest first; the run that was trained last first."""
    runs: Dict[Path, List[Path]] = {}
    for path in folder.rglob("*.ckpt"):
        runs.setdefault(path.parent, []).append(path)
    trained = {home: max(map(_written_at, found)) for home, found in runs.items()}
    now = time.time()
    return [
        ((now - trained[home]) / 3600, sorted(runs[home], key=place_in_name, reverse=True))
        for home in sorted(runs, key=trained.__getitem__, reverse=True)
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


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], identity: Identity
) -> List[Difference]:
    """Every key in which two runs differ, and its two values; rates as they were typed.

    A key that one of them lacks, or has as null, is its default there, for an older release may not have known it. A
    path makes no difference where what lies there is known to be the same.
    """
    found = []
    for key in sorted({*there, *here}):
        # the items of a list have the same default
        default = identity.defaults.get(re.sub(r"\.\d+\.", ".0.", key))
        was, now = (_or_default(run.get(key), default) for run in (there, here))
        if was == now or _is_elsewhere(key, there, here):
            continue
        if key in identity.scaled:
            was, now = (_unscaled(run, key, rate) for run, rate in ((there, was), (here, now)))
            if was == now and _global_batch(there) != _global_batch(here):
                continue  # the batch differs, which is said
        found.append((key, was, now))
    return found


def _global_batch(run: Mapping[str, Any]) -> Any:
    """Images that all processes read at a time; None where it is not known."""
    each = [run.get("optimizer.batch_size"), run.get("devices"), run.get("num_nodes")]
    counts = [1 if count is None else count for count in each]
    known = each[0] is not None and all(isinstance(count, int) for count in counts)
    return math.prod(counts) if known else None


def _unscaled(run: Mapping[str, Any], key: str, rate: Any) -> Any:
    """A rate before the host scaled it; that of the classifier is scaled only where there are validation images."""
    batch = _global_batch(run)
    validates = key != "optimizer.classifier_lr" or run.get("data.val_path") is not None
    if not batch or not validates or not isinstance(rate, float):
        return rate
    return float(f"{rate * 256 / batch:.12g}")


def _is_elsewhere(key: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a key that differs says only where something lies, or what is said by another key already."""
    if key == "val_images_fingerprint":  # other images to validate on train the same weights
        return True
    if key == "images_fingerprint":
        return there.get("images") != here.get("images")
    if key == "images_bytes":  # which an older release did not look at
        told = there.get("images_fingerprint") != here.get("images_fingerprint")
        return told or there.get(key) is None or here.get(key) is None
    if key not in _KNOWN_BY or there.get(key) is None or here.get(key) is None:
        return False
    known = there.get(_KNOWN_BY[key])
    return known is not None and known == here.get(_KNOWN_BY[key])


def difference(
    there: Mapping[str, Any], here: Mapping[str, Any], identity: Identity
) -> Optional[Difference]:
    """The first of :func:`differences`, None where there is none."""
    return next(iter(differences(there, here, identity)), None)


def in_words(differing: Sequence[Difference]) -> str:
    """Keys in which a run differs from an earlier one, as a part of a sentence."""
    said = "; ".join(f"{key} was {was}, is {now}" for key, was, now in differing[:_NAMED])
    more = len(differing) - _NAMED
    return said + (f"; and {more} more" if more > 0 else "")


def machine_here(accelerator: str) -> Dict[str, Any]:
    """What decides on the last bits of a sum beside the settings, for ``args.json``."""
    threads = {"threads": torch.get_num_threads()} if accelerator == "cpu" else {}
    return {**threads, "torch": torch.__version__}


def machine_of(checkpoint: Path) -> Dict[str, Any]:
    """What :func:`machine_here` was where a checkpoint's run was trained last; empty where nothing tells."""
    try:
        return dict(json.loads(checkpoint.with_name("args.json").read_text())["machine"])
    except (OSError, ValueError, KeyError):
        return {}


def other_bits(there: Mapping[str, Any], here: Mapping[str, Any]) -> Optional[str]:
    """Why a run that goes on will not end with the bits of one that was never stopped, None if it will.

    Args:
        there: the machine of the checkpoint; a run of an older release knows nothing of it.
        here: this one.
    """
    said = []
    then, now = there.get("threads"), here.get("threads")
    if then is not None and now is not None and then != now:
        said.append(f"{then} thread{'s' * (then != 1)} then, {now} now (OMP_NUM_THREADS={then})")
    then, now = there.get("torch"), here.get("torch")
    if then is not None and then != now:
        said.append(f"torch {then} then, {now} now")
    if not said:
        return None
    return (
        f"{' and '.join(said)}: sums differ in their last bits, so the weights will not be, bit for bit, those of a "
        "run that was never stopped."
    )


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value
