"""Whole training steps of CARP against BYOL, SwAV and Barlow Twins of the same host, and what they are made of.

python benchmarks/step.py                          ResNet-50 at 224 px and ResNet-18 at 32 px: 20 minutes on two cores
python benchmarks/step.py --settings resnet18      one of the two
python benchmarks/step.py --device cuda --batch 64
python benchmarks/step.py --memory returned --out DIR     malloc as it comes, without carp_plugin/memory.py

The methods take turns in one process: a turn is a `fit` of Lightning's Trainer on a batch that lies in memory, whose
first step is not counted (training.py). Heads and optimizer are those of the recipes named below; all methods have
LARS. Then the backbones are replaced by given features and the turns taken again: what is left of forward and backward
is head and loss. Every turn is written at once: a run that was stopped goes on when it is called again, --fresh begins
anew.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Record, about, device_named, settings_of
from benchmarks.measuring import medians
from benchmarks.pictures import shares
from benchmarks.training import (
    PHASES,
    batches,
    carp_parts,
    fit,
    method_of,
    step_settings,
    without_backbone,
)
from carp_plugin.commands.cli import saying_mistakes, silence_third_parties
from carp_plugin.errors import UserError
from carp_plugin.evaluation.drawing import write_png
from carp_plugin.terminal import say
from carp_plugin.training.memory import keep_freed_memory

BUDGET = 1.05  # CARP's step over BYOL's, ResNet-50
REFERENCE = "byol"
#: What a step is cut into; "backbones" is what forward and backward take beyond "head and loss".
PARTS = ("backbones", "head and loss", "optimizer", "momentum update")


class Setting(NamedTuple):
    """A backbone with the recipes of the methods on it."""

    title: str
    backbone: str
    size: int  # pixels
    batch: int  # images
    dataset: str
    lars: Dict[str, Any]
    methods: Dict[str, Dict[str, Any]]  # method_kwargs


_SWAV = {
    "proj_hidden_dim": 2048,
    "proj_output_dim": 128,
    "num_prototypes": 3000,
    "temperature": 0.1,
    "queue_size": 3840,
    "epoch_queue_starts": 50,
    "freeze_prototypes_epochs": 2,
}

SETTINGS = {
    # CARP: appendix B.1. BYOL and Barlow Twins: the host's scripts/pretrain/imagenet. SwAV has no recipe there: that of
    # scripts/pretrain/imagenet-100.
    "resnet50": Setting(
        "ResNet-50, 224 px",
        "resnet50",
        224,
        32,
        "imagenet",
        {"clip_lr": False, "eta": 0.001, "exclude_bias_n_norm": True},
        {
            "carp": {
                "proj_hidden_dim": 2048,
                "proj_output_dim": 256,
                "num_prototypes": 65536,
                "partition_size": 512,
            },
            "byol": {"proj_hidden_dim": 4096, "proj_output_dim": 256, "pred_hidden_dim": 4096},
            "swav": _SWAV,
            "barlow_twins": {
                "proj_hidden_dim": 4096,
                "proj_output_dim": 4096,
                "lamb": 0.0051,
                "scale_loss": 0.048,
            },
        },
    ),
    # CARP: scripts/pretrain/cifar of this project; the others: the host's.
    "resnet18": Setting(
        "ResNet-18, 32 px",
        "resnet18",
        32,
        128,
        "cifar10",
        {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True},
        {
            "carp": {
                "proj_hidden_dim": 2048,
                "proj_output_dim": 256,
                "num_prototypes": 4096,
                "partition_size": 128,
            },
            "byol": {"proj_hidden_dim": 4096, "proj_output_dim": 256, "pred_hidden_dim": 4096},
            "swav": _SWAV,
            "barlow_twins": {
                "proj_hidden_dim": 2048,
                "proj_output_dim": 2048,
                "scale_loss": 0.1,
            },
        },
    ),
}


# -------------------------------------------------------------------------------------- measuring


def turn_names(name: str, methods: Sequence[str], turns: int) -> Iterator[Tuple[str, str, str]]:
    """(key of the result, kind, method) of every turn of a setting, in the order they are taken."""
    for kind in ("step", "head"):
        for turn in range(turns):
            for method in methods:
                yield f"{name}, {kind}, turn {turn}, {method}", kind, method
    yield f"{name}, parts of carp", "parts", "carp"


def measure(name: str, setting: Setting, record: Record, args: argparse.Namespace) -> None:
    """Takes the turns of a setting that the record does not have yet."""
    jobs = list(turn_names(name, list(setting.methods), args.turns))
    if all(key in record.results for key, _, _ in jobs):
        return
    device = device_named(args.device)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    batch = args.batch or setting.batch
    models = {
        method: method_of(
            step_settings(
                method,
                kwargs,
                setting.backbone,
                setting.size,
                batch,
                setting.dataset,
                setting.lars,
                accelerator,
            )
        )
        for method, kwargs in setting.methods.items()
    }
    loader = batches(batch, setting.size, 1 + args.steps)
    kinds_seen = "step"
    for key, kind, method in track(jobs, description=setting.title):
        if kind != kinds_seen and kinds_seen == "step":
            for model in models.values():
                without_backbone(model, batch)
            loader = batches(batch, 4, 1 + args.steps)
        kinds_seen = kind
        if key in record.results:
            continue
        if kind == "parts":
            record.add(key, carp_parts(models[method], batch, device, args.turns))
        else:
            record.add(key, fit(models[method], loader, accelerator))


def summary(name: str, setting: Setting, results: Dict[str, Any], turns: int) -> Dict[str, Any]:
    """Medians of a setting, the ratio to BYOL of the same turn, and the parts of a step in seconds."""
    found: Dict[str, Any] = {"title": setting.title, "methods": {}}
    steps = {
        method: [
            statistics.median(s["step"] for s in results[f"{name}, step, turn {turn}, {method}"])
            for turn in range(turns)
        ]
        for method in setting.methods
    }
    for method in setting.methods:
        whole = _phases(results, f"{name}, step, turn", method, turns)
        head = _phases(results, f"{name}, head, turn", method, turns)
        head_and_loss = head[PHASES[0]] + head[PHASES[1]]
        found["methods"][method] = {
            "seconds": statistics.median(steps[method]),
            "over_byol": statistics.median(
                own / other for own, other in zip(steps[method], steps[REFERENCE])
            ),
            "phases": whole,
            "parts": {
                "backbones": whole[PHASES[0]] + whole[PHASES[1]] - head_and_loss,
                "head and loss": head_and_loss,
                "optimizer": whole[PHASES[2]],
                "momentum update": whole[PHASES[3]],
            },
        }
    inner = results[f"{name}, parts of carp"]
    rest = found["methods"]["carp"]["parts"]["head and loss"] - sum(inner.values())
    found["carp"] = {**inner, "rest: statistics, classifier, logging": rest}
    return found


def _phases(results: Dict[str, Any], key: str, method: str, turns: int) -> Dict[str, float]:
    taken = [step for turn in range(turns) for step in results[f"{key} {turn}, {method}"]]
    return medians({phase: [step[phase] for step in taken] for phase in PHASES})


# ---------------------------------------------------------------------------------------- showing


def table(found: Dict[str, Any]) -> Table:
    """Seconds, the ratio to BYOL and the share of every part, method by method."""
    shown = Table(title=f"{found['title']}: a training step, shares in %")
    for column in ("", "seconds", f"x {REFERENCE}", *PARTS):
        shown.add_column(column, justify="right" if column else "left")
    for method, one in found["methods"].items():
        total = one["seconds"]
        shown.add_row(
            method,
            f"{total:.3f}",
            f"{one['over_byol']:.3f}",
            *(f"{100 * one['parts'][part] / total:.1f}" for part in PARTS),
        )
    return shown


def carp_table(found: Dict[str, Any]) -> Table:
    """What CARP's head and loss are made of, in milliseconds and as a share of the step."""
    total = found["methods"]["carp"]["seconds"]
    shown = Table(title=f"{found['title']}: head and loss of carp, each measured alone")
    for column in ("", "ms", "% of the step"):
        shown.add_column(column, justify="right" if column else "left")
    for part, seconds in found["carp"].items():
        shown.add_row(part, f"{1000 * seconds:.1f}", f"{100 * seconds / total:.2f}")
    return shown


def run(args: argparse.Namespace) -> None:
    """Measures what is missing, then shows everything.

    Raises:
        UserError: a number below 1, a device that is not there, or a file of results that cannot be continued.
    """
    for name in ("turns", "steps", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: expected a whole number of at least 1.")
    if args.batch == 1:
        raise UserError("--batch 1: batch norm needs at least 2 images.")
    device = device_named(args.device)
    sizes = {name: args.batch or SETTINGS[name].batch for name in SETTINGS}
    if device.type == "cpu" and args.memory == "kept" and not keep_freed_memory():
        args.memory = "as malloc here does"
    settings = settings_of(device, batch=sizes, steps=args.steps, memory=args.memory)
    record = Record(args.out / "step.json", settings, args.fresh)
    found = {}
    for name in args.settings:
        measure(name, SETTINGS[name], record, args)
        found[name] = summary(name, SETTINGS[name], record.results, args.turns)
    record.write(summary={**record.content.get("summary", {}), **found})
    for one in found.values():
        say(table(one))
        say(carp_table(one))
    if "resnet50" in found:
        say(_verdict(found["resnet50"]["methods"]["carp"]["over_byol"]))
    say(about(record.content["settings"]))
    bars = {
        one["title"]: {method: m["parts"] for method, m in one["methods"].items()}
        for one in found.values()
    }
    picture = write_png(shares(bars, PARTS), args.out)
    say(f"written to {record.path} and {picture}")


def _verdict(ratio: float) -> str:
    verdict = "within" if ratio <= BUDGET else "over"
    return f"a step of CARP takes {ratio:.3f} of BYOL's on a ResNet-50; budget {BUDGET}: {verdict}"


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names: List[str] = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, help="images of a step, instead of the setting's")
    parser.add_argument("--turns", type=int, default=4, help="turns of every method")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn that are counted")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--memory",
        choices=("kept", "returned"),
        default="kept",
        help="whether freed memory stays with the process, as in a run on a CPU",
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    args = parser.parse_args()
    silence_third_parties()
    with saying_mistakes():
        run(args)


if __name__ == "__main__":
    main()
