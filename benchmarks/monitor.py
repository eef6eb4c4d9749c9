"""What the collapse monitor and the guard against a loss that is not finite cost: shares of CARP's training step.

python benchmarks/monitor.py                        the demo's step and a ResNet-18 on 32 px with K = 65,536, B = 512
python benchmarks/monitor.py --steps 10 --sizes demo          a look at it

One run of Lightning a size, on random images, in which steps with and without take turns, so that a busy machine slows
both: `with` computes CARP's statistics, logs them, keeps features and guards the loss; `without` does none of it. What
is done once an epoch, the rank above all, is timed by itself and shared out over the steps of an epoch. Shares are
of the median step without. As a difference of two medians is noisy where it is small, the parts are timed directly
too, in the steps with. Budget: 2 % for the monitor.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import write_result
from carp_plugin import register
from carp_plugin.commands.cli import silence_third_parties
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.collapse import CollapseMonitor
from carp_plugin.training.callbacks.finite import FiniteLoss
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import augmentation, image_folder, small_settings

BUDGET = 0.02


class Size(NamedTuple):
    """A training step: pixels, images of a batch, the head, K, B, and how many steps an epoch has."""

    pixels: int
    images: int
    hidden: int
    prototypes: int
    block: int
    epoch_steps: int


SIZES = {
    "demo": Size(24, 64, 1024, 1024, 32, 32),
    "resnet18 32 px": Size(32, 64, 2048, 65536, 512, 781),
}


class Images(Dataset):
    """Random views in the host's batch layout, made once."""

    def __init__(self, size: Size, steps: int) -> None:
        self.steps = steps
        views = [torch.randn(size.images, 3, size.pixels, size.pixels) for _ in range(2)]
        self.batch = [torch.arange(size.images), views, torch.randint(0, 6, (size.images,))]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Any:
        return self.batch


class TakingTurns(Callback):
    """Switches both callbacks and the method's statistics on in every second step, and keeps the times."""

    def __init__(self, module: Any, monitor: CollapseMonitor, guard: FiniteLoss) -> None:
        self.on, self.steps = False, defaultdict(list)
        self.parts: Dict[str, List[float]] = defaultdict(list)
        module.watch = self._timed("monitor", module.watch, without={})
        for name in (
            "on_train_batch_start",
            "on_train_batch_end",
            "_see_features",
            "_see_embeddings",
        ):
            setattr(monitor, name, self._timed("monitor", getattr(monitor, name)))
        for name in ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step"):
            setattr(guard, name, self._timed("guard", getattr(guard, name)))
        monitor.on_train_epoch_end = self._always("epoch", monitor.on_train_epoch_end)

    def _timed(self, part: str, do: Callable[..., Any], without: Any = None) -> Callable[..., Any]:
        always = self._always(part, do)
        return lambda *args, **kwargs: always(*args, **kwargs) if self.on else without

    def _always(self, part: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return do(*args, **kwargs)
            finally:
                self.parts[part][-1:] = [
                    (self.parts[part] or [0.0])[-1] + time.perf_counter() - started
                ]

        return timed

    def turn(self, index: int) -> None:
        """Before everything else of a step."""
        self.on, self.started = index % 2 == 1, time.perf_counter()
        for part in ("monitor", "guard") if self.on else ():
            self.parts[part].append(0.0)

    def on_train_batch_end(self, *args: Any) -> None:
        """After everything else of a step."""
        self.steps["with" if self.on else "without"].append(time.perf_counter() - self.started)


class First(Callback):
    """Begins a turn before the other callbacks see the step."""

    def __init__(self, turns: TakingTurns) -> None:
        self.turns = turns

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.turns.turn(index)


def measure(size: Size, steps: int, warm_up: int, folder: Path) -> Dict[str, Any]:
    """Seconds and shares of one size."""
    settings = small_settings(
        image_folder(folder / "images"),
        method_kwargs={
            "proj_hidden_dim": size.hidden,
            "proj_output_dim": 256,
            "num_prototypes": size.prototypes,
            "partition_size": size.block,
        },
        augmentations=[augmentation(size.pixels)],
        optimizer__name="adamw",
        optimizer__batch_size=size.images,
        optimizer__lr=0.001,
        max_epochs=1,
        checkpoint__enabled=False,
    )
    seed_everything(0, verbose=False)
    model = build_model(settings, machine_of(settings))
    monitor, guard = CollapseMonitor(), FiniteLoss()
    turns = TakingTurns(model, monitor, guard)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[First(turns), guard, monitor, turns],
    )
    loader = DataLoader(Images(size, 2 * (steps + warm_up)), batch_size=None)
    trainer.fit(model, loader)
    median = {key: statistics.median(times[warm_up:]) for key, times in turns.steps.items()}
    direct = {key: statistics.median(turns.parts[key][warm_up:]) for key in ("monitor", "guard")}
    epoch, step = turns.parts["epoch"][-1], median["without"]
    share = {
        "monitor": direct["monitor"] / step + epoch / size.epoch_steps / step,
        "guard": direct["guard"] / step,
        "both, side by side": median["with"] / step - 1 + epoch / size.epoch_steps / step,
    }
    return {
        "size": size._asdict(),
        "seconds": {**median, **direct, "once an epoch": epoch},
        "shares": share,
    }


def table(results: Dict[str, Any]) -> Table:
    """Milliseconds and shares."""
    shown = Table(
        title=f"share of CARP's training step, {torch.get_num_threads()} threads, medians"
    )
    columns = (
        "step without, ms",
        "with, ms",
        "monitor",
        "guard",
        "both, side by side",
        "once an epoch, ms",
    )
    shown.add_column("size")
    for column in columns:
        shown.add_column(column, justify="right")
    for name, result in results.items():
        seconds, shares = result["seconds"], result["shares"]
        shown.add_row(
            name,
            f"{1e3 * seconds['without']:.1f}",
            f"{1e3 * seconds['with']:.1f}",
            *(f"{100 * share:.2f} %" for share in shares.values()),
            f"{1e3 * seconds['once an epoch']:.1f}",
        )
    return shown


def main() -> None:
    """Measures every size that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="with, and as many without")
    parser.add_argument("--warm-up", type=int, default=2, help="of each, not counted")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/monitor.json"))
    args = parser.parse_args()
    silence_third_parties()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    register()
    results = {}
    for name in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(SIZES[name], args.steps, args.warm_up, Path(folder))
    say(table(results))
    write_result(args.json, {"budget": BUDGET, "sizes": results})
    say(
        f"monitor within {BUDGET:.0%}: "
        + ", ".join(
            f"{name} {'yes' if result['shares']['monitor'] <= BUDGET else 'NO'}"
            for name, result in results.items()
        )
    )
    say(f"written to {args.json}")


if __name__ == "__main__":
    main()
