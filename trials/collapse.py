"""A real collapse beside a healthy run as the monitor sees them: table 5's last column on the embedded photographs.

python trials/collapse.py                   about two minutes on two cores; a table, and a JSON
python trials/collapse.py --epochs 1 --steps 8        a look at it

Both runs are scripts/pretrain/carp.yaml with the same overrides and the same seed; they differ in the size of a block
alone: all 4,096 prototypes in one, and blocks of 16. The collapse is helped along as the paper's is, by many more
prototypes than rows in a batch, 4,096 for 64 images; and to see it within two epochs, by a constant learning rate ten
times the recipe's and no momentum encoder (table 5's second row, which collapses like the first).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List

from hydra import compose, initialize_config_dir
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import write_result
from carp_plugin.commands.cli import saying_mistakes, silence_third_parties
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.settings import hydra_defaults
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from carp_plugin.terminal import say

ROOT = Path(__file__).resolve().parent.parent
K, IMAGES = 4096, 64
RUNS = {"one block": K, "healthy": 16}

#: Of the table: what the history calls it, and its digits.
COLUMNS = {
    "consistency": ("train_consistency", 2),
    "entropy gap": ("train_entropy_gap", 2),
    "information": ("train_information", 3),
    "perplexity": ("train_prototypes_perplexity", 2),
    "z_std": ("train_z_std", 4),
    "rank": ("train_feature_rank", 1),
}


def settings(name: str, args: argparse.Namespace) -> List[str]:
    """The overrides of a run, as a user types them."""
    return [
        f"method_kwargs.num_prototypes={K}",
        f"method_kwargs.partition_size={RUNS[name]}",
        f"optimizer.batch_size={IMAGES}",
        "optimizer.lr=0.012",  # x 64 / 256: 0.003
        "scheduler.name=none",
        "momentum.base_tau=0",
        "momentum.final_tau=0",
        f"max_epochs={args.epochs}",
        f"limit_train_batches={args.steps}",
        "limit_val_batches=0",
        "evaluation.enabled=False",
        f"checkpoint.dir={args.dir / name.replace(' ', '_')}",
        f"seed={args.seed}",
        "auto_resume.enabled=False",
        "enable_progress_bar=False",
    ]


def run(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Trains one of the two and returns what was seen, epoch by epoch, and the verdict after the last."""
    overrides = settings(name, args)
    hydra_defaults.install()
    with initialize_config_dir(str(ROOT / "scripts" / "pretrain"), version_base="1.2"):
        cfg = compose("carp.yaml", overrides=[f"++{override}" for override in overrides])
    summary = pretrain(read_pretraining(plain(cfg)))
    epochs = json.loads(Path(summary["checkpoint"]).with_name("metrics.json").read_text())
    return {
        "overrides": overrides,
        "epochs": epochs,
        "signs_of_collapse": summary["signs_of_collapse"],
        "seconds": summary["seconds"],
    }


def table(runs: Dict[str, Dict[str, Any]]) -> Table:
    """A row for each epoch of each run."""
    shown = Table(title=f"K = {K} prototypes, {IMAGES} images in a batch")
    for column in ("run", "epoch", *COLUMNS, "verdict"):
        shown.add_column(
            column, justify="left" if column.startswith(("run", "verdict")) else "right"
        )
    for name, result in runs.items():
        for epoch in result["epochs"]:
            numbers = [f"{epoch[key]:.{digits}f}" for key, digits in COLUMNS.values()]
            verdict = "collapse" if epoch["train_collapse"] else "none"
            shown.add_row(f"{name}, B = {RUNS[name]}", str(epoch["epoch"]), *numbers, verdict)
    return shown


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="of an epoch")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path("trained_models/collapse"))
    parser.add_argument("--json", type=Path, default=Path("results/trials/collapse.json"))
    args = parser.parse_args()
    silence_third_parties()
    with saying_mistakes():
        runs = {name: run(name, args) for name in RUNS}
        say(table(runs))
        for name, result in runs.items():
            say(f"{name}: {'; '.join(result['signs_of_collapse']) or 'no sign of collapse.'}")
        write_result(args.json, {"prototypes": K, "images": IMAGES, "runs": runs})
        say(f"written to {args.json}")


if __name__ == "__main__":
    main()
