"""k-NN of carp_plugin against the host's classifier, side by side: time and peak memory, each in a process of its own.

python benchmarks/knn.py                                  100,000 x 2,048, 10,000 queries: the size that counts
python benchmarks/knn.py --bank 5000 --dim 128 --queries 500 --classes 20 --repeats 1      a trial of seconds

carp_plugin classifies for k = 10, 20, 100, 200 in one search; the host's classifier runs once, for the largest k, which
is the most lenient to it: it would search again for every other. Features are random with class structure, made batch
by batch, and each side keeps them as it does in an evaluation: float16 unit rows here, float32 batches there. Memory is
the process's peak, Python and torch included. Budget: at most 1/2 of the time and 1/2 of the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import torch
import torch.nn.functional as F
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from carp_plugin.evaluation.protocols.knn import weighted_knn
from carp_plugin.evaluation.store import Features
from carp_plugin.host import HOST, WeightedKNNClassifier
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.history import write_json

KINDS = (10, 20, 100, 200)
BATCH = 1024
SIDES = ("carp_plugin", "host")


def batches(
    rows: int, dim: int, classes: int, seed: int
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Features (n, dim) float32 around the centres of their classes, and labels (n,); the last batch is smaller.

    The classes come in turn, so that none is missing: the host counts them in the queries and fails on any beyond.
    """
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    for at in range(0, rows, BATCH):
        labels = torch.arange(at, min(at + BATCH, rows)) % classes
        noise = torch.randn(len(labels), dim, generator=generator)
        yield centres[labels] + 6 * noise, labels


def kept(rows: int, dim: int, classes: int, seed: int) -> Features:
    """Unit rows in half precision, as carp_plugin keeps them."""
    feats, targets = (
        torch.empty(rows, dim, dtype=torch.float16),
        torch.empty(rows, dtype=torch.long),
    )
    for i, (some, labels) in enumerate(batches(rows, dim, classes, seed)):
        here = slice(i * BATCH, i * BATCH + len(some))
        feats[here], targets[here] = F.normalize(some).half(), labels
    return Features(feats, targets)


def measure(side: str, args: argparse.Namespace) -> Dict[str, Any]:
    """One run in this process: seconds of the classification, peak memory in MB, accuracies in percent."""
    k = [kind for kind in KINDS if kind <= args.k]
    sizes = args.dim, args.classes
    if side == "carp_plugin":
        bank, queries = kept(args.bank, *sizes, 1), kept(args.queries, *sizes, 2)
        started = time.perf_counter()
        found = weighted_knn(bank, queries, k)
        seconds, accuracy = time.perf_counter() - started, [found.top1[k[-1]], found.top5[k[-1]]]
    else:
        classifier = WeightedKNNClassifier(k=k[-1], T=0.07, distance_fx="cosine")
        for feats, labels in batches(args.bank, *sizes, 1):
            classifier.update(train_features=feats, train_targets=labels)
        for feats, labels in batches(args.queries, *sizes, 2):
            classifier.update(test_features=feats, test_targets=labels)
        started = time.perf_counter()
        accuracy = [float(value) for value in classifier.compute()]
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "megabytes": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "accuracy": accuracy,
    }


def in_own_process(side: str) -> Dict[str, Any]:
    """Runs this script again with the same arguments for one side."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--side", side]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> Dict[str, Any]:
    """Medians of both sides, taken in turns so that a busy machine slows both."""
    runs: Dict[str, List[Dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(args.repeats):
        for side in SIDES:
            runs[side].append(in_own_process(side))
    medians = {
        side: {
            key: statistics.median(run[key] for run in runs[side])
            for key in ("seconds", "megabytes")
        }
        for side in SIDES
    }
    ratios = {
        key: medians["carp_plugin"][key] / medians["host"][key] for key in ("seconds", "megabytes")
    }
    return {
        "sizes": {
            key: getattr(args, key) for key in ("bank", "queries", "dim", "classes", "k", "repeats")
        },
        "threads": torch.get_num_threads(),
        "host": {key: value for key, value in HOST.as_dict().items() if key != "location"},
        "medians": medians,
        "ratios": ratios,
        "budget": 0.5,
        "runs": runs,
    }


def table(result: Dict[str, Any]) -> Table:
    """Medians, ratios and the accuracies at the largest k, which must agree."""
    sizes = result["sizes"]
    shown = Table(
        title=f"k-NN, bank {sizes['bank']:,} x {sizes['dim']:,}, {sizes['queries']:,} queries, k <= {sizes['k']}, "
        f"{result['threads']} threads, median of {sizes['repeats']}"
    )
    for column in ("", "seconds", "peak memory, MB", "top-1 and top-5, %"):
        shown.add_column(column, justify="right" if column else "left")
    for side, some in result["medians"].items():
        accuracy = " ".join(f"{value:.2f}" for value in result["runs"][side][0]["accuracy"])
        shown.add_row(side, f"{some['seconds']:.2f}", f"{some['megabytes']:.0f}", accuracy)
    ratios = result["ratios"]
    shown.add_row(
        "ratio (budget 0.5)", f"{ratios['seconds']:.2f}", f"{ratios['megabytes']:.2f}", ""
    )
    return shown


def main() -> None:
    """Compares, or measures one side where a comparison asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bank", type=int, default=100_000, help="rows of the bank")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048, help="values of a feature")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=200, choices=KINDS, help="the largest k")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("knn_benchmark.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.k > args.bank:
        parser.error(f"--k {args.k} is larger than the bank of {args.bank} rows")
    if args.queries < args.classes:
        parser.error(f"--queries {args.queries} are too few for --classes {args.classes}: one each")
    if args.side:
        print(json.dumps(measure(args.side, args)))
        return
    result = compare(args)
    say(table(result))
    write_json(args.json, result)
    say(f"written to {args.json}")


if __name__ == "__main__":
    main()
