"""Offline k-NN of one checkpoint: every network and feature of it, one table, and one JSON line that defines it."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import faiss
import torch
from rich.table import Table

from carp_plugin.data.loaders import evaluation_transform, say_bad_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation.knn import KnnResult, classify
from carp_plugin.evaluation.offline import Offline, check_at_least, data_parser, prepare
from carp_plugin.evaluation.search import INDEXES, search
from carp_plugin.evaluation.store import Features, stream
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.history import write_json
from carp_plugin.training.report import provenance

#: (network, features) -> temperature -> what was measured.
Results = Dict[Tuple[str, str], Dict[float, KnnResult]]


def parser() -> argparse.ArgumentParser:
    """The flags: those of solo-learn's ``main_knn.py``, of which only the checkpoint is required, and our own."""
    flags = data_parser(
        "main_knn.py",
        "k-NN of a checkpoint (appendix C.3); what is left out is taken from the args.json beside it.",
    )
    add = flags.add_argument
    add("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    add("--temperature", type=float, nargs="+", default=[0.07], help="tau of the votes")
    add("--distance_function", nargs="+", choices=["cosine", "euclidean"], default=["cosine"])
    add(
        "--index",
        choices=INDEXES,
        default="exact",
        help="ivf and hnsw are approximate; recall is measured",
    )
    add(
        "--store",
        type=Path,
        help="folder for the features, mapped from there instead of held in memory",
    )
    add(
        "--feature_dtype",
        choices=["float16", "float32"],
        default="float16",
        help="float32 keeps every bit, as the host does, in twice the memory",
    )
    add("--json", type=Path, help="writes the result to this file too")
    return flags


def main_knn(arguments: Sequence[str]) -> Dict[str, Any]:
    """Evaluates the checkpoint that the arguments name, and says what came out.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        Dict[str, Any]: what the JSON line holds.

    Raises:
        UserError: a mistake in the flags, the checkpoint or the data.
    """
    args = parser().parse_args(list(arguments))
    _check_flags(args)
    run = prepare(args)
    bank_images = len(run.train.dataset)  # type: ignore[arg-type]
    if max(args.k) > bank_images:
        raise UserError(
            f"--k {max(args.k)} is larger than the bank of {bank_images} training images; give smaller ones."
        )
    networks, dtype = run.networks(), getattr(torch, args.feature_dtype)
    banks, queries = (
        stream(
            networks,
            loader,
            run.device,
            f"{split} images",
            folder=args.store and args.store / split,
            dtype=dtype,
        )
        for split, loader in (("train", run.train), ("val", run.val))
    )
    say_bad_images(run.train)
    results = {
        (name, kind): _measure(banks[f"{name}/{kind}"], queries[f"{name}/{kind}"], args, run.device)
        for name, kind in run.columns
    }
    say(table(results, f"{run.pretrained.method}: k-NN accuracy on the validation images, %"))
    for (name, kind), found in results.items():
        recall = next(iter(found.values())).recall
        if recall is not None:
            say(f"{args.index}: found {recall:.2%} of the {max(args.k)} neighbours, {name} {kind}")
    summary = _summary(run, args, results, bank_images)
    print(json.dumps(summary))
    if args.json:
        _write(args.json, summary)
    return summary


def _check_flags(args: argparse.Namespace) -> None:
    if "euclidean" in args.distance_function:
        raise UserError(
            "--distance_function euclidean is not offered: the protocol (appendix C.3) compares unit rows by their "
            "cosine, and on those the Euclidean distance ranks alike; leave the flag out."
        )
    check_at_least(args, "k", 1)
    for value in args.temperature:
        if not 0 < value < float("inf"):
            raise UserError(f"--temperature must be a positive number, got {value}.")
    if args.json and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder; give a file.")
    if args.store and args.store.exists() and not args.store.is_dir():
        raise UserError(f"--store {args.store} is a file; give a folder.")


def _measure(
    bank: Features, queries: Features, args: argparse.Namespace, device: torch.device
) -> Dict[float, KnnResult]:
    found = search(
        bank.feats, queries.feats, max(args.k), index=args.index, device=device, title="neighbours"
    )
    return {
        tau: classify(found, bank.targets, queries.targets, args.k, tau)
        for tau in dict.fromkeys(args.temperature)
    }


def table(results: Results, title: str) -> Table:
    """One row for every k (and temperature), top-1 and top-5 of every network and features."""
    shown = Table(title=title)
    shown.add_column("k", justify="right")
    first = next(iter(results.values()))
    if len(first) > 1:
        shown.add_column("tau", justify="right")
    for name, kind in results:
        shown.add_column(f"{name}\n{kind}\ntop-1", justify="right")
        shown.add_column("\n\ntop-5", justify="right")
    for tau, some in first.items():
        for k in some.top1:
            cells = [str(k)] + ([f"{tau:g}"] if len(first) > 1 else [])
            for found in results.values():
                cells += [f"{found[tau].top1[k]:.2f}", f"{found[tau].top5[k]:.2f}"]
            shown.add_row(*cells)
    return shown


def _summary(run: Offline, args: argparse.Namespace, results: Results, bank: int) -> Dict[str, Any]:
    """Everything that defines the numbers, and the numbers, as json takes it."""
    some = next(iter(next(iter(results.values())).values()))
    pretrained, cfg = run.pretrained, run.cfg
    ran = copy.deepcopy(cfg)
    ran.accelerator, ran.devices = run.device.type, [run.device.index or 0]
    return {
        "protocol": "weighted k-NN, appendix C.3",
        "checkpoint": str(pretrained.path),
        "sha256": _sha256(pretrained.path),
        "tensors": pretrained.tensors,
        "method": pretrained.method,
        "epoch": pretrained.epoch,
        "results": [
            {
                "network": name,
                "features": kind,
                "temperature": tau,
                "k": k,
                "top1": found.top1[k],
                "top5": found.top5[k],
                "recall": found.recall,
            }
            for (name, kind), by_tau in results.items()
            for tau, found in by_tau.items()
            for k in found.top1
        ],
        "k": sorted(set(args.k)),
        "temperature": list(dict.fromkeys(args.temperature)),
        "distance": "cosine",
        "index": args.index,
        "bank_images": bank,
        "query_images": len(some.targets),
        "classes": some.classes,
        "dataset": cfg.data.dataset,
        "train_data_path": str(cfg.data.train_path),
        "val_data_path": str(cfg.data.val_path),
        "transform": " ".join(str(evaluation_transform(cfg)).split()),
        "feature_dtype": f"{args.feature_dtype} unit rows, searched in float32",
        "faiss": faiss.__version__,
        **provenance(ran),
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: Dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise UserError(
            f"--json {path} cannot be written ({error.strerror}); give another file."
        ) from error
    say(f"written to {path}")
