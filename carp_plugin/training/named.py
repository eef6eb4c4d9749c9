"""A checkpoint that the user names to go on from: what of its run differs, what stays, and what cannot go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

from carp_plugin.errors import UserError, typed
from carp_plugin.settings.trainer import Run
from carp_plugin.training.plan import Plan
from carp_plugin.training.resume import Difference, Identity, compared, differences, in_words

#: Settings whose values Lightning restores from a checkpoint, whatever the configuration says.
_IN_CHECKPOINT = ("optimizer.lr", "optimizer.classifier_lr", "optimizer.weight_decay", "scheduler.")

#: What the order of the images in an epoch depends on.
_OF_ORDER = ("seed", "images", "images_fingerprint", "images_bytes", "data.fraction")


class Named(NamedTuple):
    """What is known of the run that a checkpoint is of.

    Attributes:
        remarks: sentences about what differs.
        planned: optimizer steps that it was planned with; None where nothing tells.
    """

    remarks: List[str]
    planned: Optional[int] = None


def look_at(
    path: Path,
    planned: Optional[int],
    args: Mapping[str, Any],
    settings: Run,
    plan: Plan,
    identity: Identity,
) -> Named:
    """Compares the run of a checkpoint with the one that is to go on from it.

    Args:
        path: of the checkpoint; where it was moved without its ``args.json``, nothing is known.
        planned: steps that its schedules are made for, if it says so.
        args: what this run's ``args.json`` will hold.
        settings: of this run.
        plan: its numbers.
        identity: what tells runs apart.

    Raises:
        UserError: its optimizer is another one, whose state this one cannot go on with; or its steps are of another
            number of images, so that neither its place in the epoch nor its schedule fits.
    """
    try:
        there = compared(json.loads(path.with_name("args.json").read_text()), identity)
    except (OSError, ValueError):
        return Named(
            [
                f"no args.json is beside {path}: whether it is of a run of these settings is not known."
            ]
        )
    here = compared(args, identity)
    if there.get("optimizer.name") != here["optimizer.name"]:
        raise UserError(
            f"the checkpoint {path} was trained with optimizer.name={there.get('optimizer.name')}, whose state "
            f"{here['optimizer.name']} cannot go on with; set that, or begin anew without resume_from_checkpoint."
        )
    _check_steps(path, there, settings, plan)
    differing = differences(there, here, identity)
    if "-step=" in path.name:
        _check_order(path, differing)
    kept = [each for each in differing if each[0].startswith(_IN_CHECKPOINT)]
    changed = [each for each in differing if each not in kept]
    remarks = []
    if kept:
        were = ", ".join(f"{key}={was}" for key, was, _ in kept)
        remarks.append(
            f"the schedule in {path} goes on as it was: {were}; to change it, begin anew."
        )
    if changed:
        remarks.append(
            f"{path} is of a run of other settings, and goes on with those of this one: {in_words(changed)}."
        )
    planned = _planned(there, plan) if planned is None else planned
    if planned is not None and planned < plan.total_steps:
        remarks.append(
            f"the schedules in {path} end at step {planned} of {plan.total_steps}; from there on the learning rate "
            f"and the teacher's tau stay as they are then{_from_weights(path, settings, '; for new ones begin ')}."
        )
    return Named(remarks, planned)


def _check_steps(path: Path, there: Mapping[str, Any], settings: Run, plan: Plan) -> None:
    """Its steps are of as many images as ours, and, within an epoch, of as many batches."""
    batch = there.get("optimizer.batch_size")
    accumulated = _or(there, "accumulate_grad_batches", 1)
    if not batch:
        return
    world = (there.get("devices") or 1) * _or(there, "num_nodes", 1)
    images, ours = batch * world * accumulated, plan.global_batch
    if images != ours:
        what = (
            f"steps of {images} images (batches of {batch} on {world} device{'s' * (world != 1)}), and those of this "
            f"run have {ours}"
        )
        fits, rest = divmod(images, plan.machine.world * settings.accumulate_grad_batches)
        way = typed("optimizer.batch_size", str(fits)) if not rest else "as many images"
    elif "-step=" in path.name and accumulated != settings.accumulate_grad_batches:
        what = f"steps of {accumulated} batches, and those of this run have another number"
        way = typed("accumulate_grad_batches", str(accumulated))
    else:
        return
    raise UserError(
        f"the checkpoint {path} is of {what}: its place in the epoch and its schedule are counted in steps; give "
        f"{way}{_from_weights(path, settings, ', or begin ')}."
    )


def _check_order(path: Path, differing: Sequence[Difference]) -> None:
    """The images that are left of its epoch are those that are left of ours."""
    for key, was, now in differing:
        if key in _OF_ORDER:
            way = typed(key, str(was)) if key in ("seed", "data.fraction") else "the images of then"
            raise UserError(
                f"the checkpoint {path} was written within an epoch, and {key} was {was}, is {now}: the epoch would go "
                f"on in another order, with some images twice and others never; give {way}, or a checkpoint of a whole "
                "epoch."
            )


def _planned(there: Mapping[str, Any], plan: Plan) -> Optional[int]:
    """Optimizer steps that the other run had before it, if it had as many images."""
    epochs, limit = there.get("max_epochs"), _or(there, "max_steps", -1)
    if not isinstance(epochs, int):
        return None
    steps = epochs * plan.steps_per_epoch
    return steps if limit == -1 else min(steps, limit)


def _from_weights(path: Path, settings: Run, lead: str) -> str:
    """How a new run begins with the weights of a checkpoint, where its kind of run can."""
    if "initial_checkpoint" not in type(settings).model_fields:
        return ""
    weights = typed("initial_checkpoint", str(path))
    return f"{lead}a new run from its weights: {weights} in place of resume_from_checkpoint"


def _or(values: Mapping[str, Any], key: str, default: Any) -> Any:
    value = values.get(key)
    return default if value is None else value
