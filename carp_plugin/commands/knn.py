"""Offline k-NN of one checkpoint: every network and feature of it, one table, and one JSON line that defines it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import faiss
import torch
from rich.table import Table

from carp_plugin.commands.saving import check_file, save
from carp_plugin.data.loaders import drawn_of, evaluation_transform, say_bad_images
from carp_plugin.data.remarks import say_remarks
from carp_plugin.errors import UserError
from carp_plugin.evaluation.offline import Prepared, machine_of_evaluation, prepare
from carp_plugin.evaluation.protocols.knn import FEW, KnnResult, classify, doubt_on_top5
from carp_plugin.evaluation.search import search
from carp_plugin.evaluation.store import Features, describe, stream
from carp_plugin.settings.offline import Knn
from carp_plugin.terminal import say
from carp_plugin.training.report import provenance
from carp_plugin.training.state import file_sha256

#: (network, features) -> temperature -> what was measured.
Results = Dict[Tuple[str, str], Dict[float, KnnResult]]


def knn(flags: Knn) -> Dict[str, Any]:
    """Evaluates the checkpoint that the flags name, and says what came out.

    Returns:
        Dict[str, Any]: what the JSON line holds.

    Raises:
        UserError: a mistake in the flags, the checkpoint or the data.
    """
    _check_flags(flags)
    run = prepare(flags)
    bank_images = len(run.train.dataset)  # type: ignore[arg-type]
    flags = with_fitting_k(flags, bank_images)
    networks, dtype = run.networks(), getattr(torch, flags.feature_dtype)
    store = None if flags.store is None else Path(flags.store)
    banks, queries = (
        stream(
            networks,
            loader,
            run.device,
            f"{split} images",
            folder=store and store / split,
            dtype=dtype,
        )
        for split, loader in (("train", run.train), ("val", run.val))
    )
    if store:
        for split, loader, rows in (("train", run.train, banks), ("val", run.val, queries)):
            describe(store / split, loader, next(iter(rows.values())).targets)
    say_bad_images(run.train)
    results = {
        (name, kind): _measure(
            banks[f"{name}/{kind}"], queries[f"{name}/{kind}"], flags, run.device
        )
        for name, kind in run.columns
    }
    say(table(results, f"{run.pretrained.method}: k-NN accuracy on the validation images, %"))
    said = _on_top5(results)
    say_remarks(said)
    for (name, kind), found in results.items():
        recall = next(iter(found.values())).recall
        if recall is not None:
            say(
                f"{flags.index}: found {recall:.2%} of the {max(flags.k)} neighbours, {name} {kind}"
            )
    summary = _summary(run, flags, results, bank_images)
    summary["remarks"] = [*run.remarks, *said]
    save(summary, run.pretrained.path, "knn", flags.json_file)
    return summary


def _on_top5(results: Results) -> List[str]:
    """What is to be known of the top-5 accuracies: that they would say nothing, or count what nobody voted for."""
    classes = next(iter(next(iter(results.values())).values())).classes
    if classes <= FEW:
        return [f"{classes} classes: top-5 would say nothing, and is left out"]
    several = len(next(iter(results.values()))) > 1
    named = {
        f"{name} {kind}" + (f", tau = {tau:g}" if several else ""): found
        for (name, kind), by_tau in results.items()
        for tau, found in by_tau.items()
    }
    doubt = doubt_on_top5(named)
    return [doubt] if doubt else []


def with_fitting_k(flags: Knn, bank: int) -> Knn:
    """The flags with no more neighbours than training images: a default that does not fit is left out, and said.

    Raises:
        UserError: one that was given does not fit.
    """
    too_many = [k for k in flags.k if k > bank]
    if not too_many:
        return flags
    if "k" in flags.model_fields_set:
        raise UserError(
            f"--k {max(too_many)} is larger than the bank of {bank} training images; give smaller ones."
        )
    left = tuple(k for k in flags.k if k <= bank) or (bank,)
    listed = ", ".join(map(str, too_many))
    say(f"k = {listed} left out: the bank has {bank} training images; --k takes others.")
    return flags.model_copy(update={"k": left})


def _check_flags(flags: Knn) -> None:
    if "euclidean" in flags.distance_function:
        raise UserError(
            "--distance_function euclidean is not offered: the protocol (appendix C.3) compares unit rows by their "
            "cosine, and on those the Euclidean distance ranks alike; leave the flag out."
        )
    check_file(flags.json_file)
    if flags.store and Path(flags.store).exists() and not Path(flags.store).is_dir():
        raise UserError(f"--store {flags.store} is a file; give a folder.")


def _measure(
    bank: Features, queries: Features, flags: Knn, device: torch.device
) -> Dict[float, KnnResult]:
    found = search(
        bank.feats,
        queries.feats,
        max(flags.k),
        index=flags.index,
        device=device,
        title="neighbours",
    )
    return {
        tau: classify(found, bank.targets, queries.targets, flags.k, tau)
        for tau in dict.fromkeys(flags.temperature)
    }


def table(results: Results, title: str) -> Table:
    """One row for every k (and temperature), top-1 and top-5 of every network and features."""
    shown = Table(title=title)
    shown.add_column("k", justify="right")
    first = next(iter(results.values()))
    some_classes = next(iter(first.values())).classes
    if len(first) > 1:
        shown.add_column("tau", justify="right")
    for name, kind in results:
        shown.add_column(f"{name}\n{kind}\ntop-1", justify="right")
        if some_classes > FEW:
            shown.add_column("\n\ntop-5", justify="right")
    for tau, some in first.items():
        for k in some.top1:
            cells = [str(k)] + ([f"{tau:g}"] if len(first) > 1 else [])
            for found in results.values():
                cells.append(f"{found[tau].top1[k]:.2f}")
                if some_classes > FEW:
                    cells.append(f"{found[tau].top5[k]:.2f}")
            shown.add_row(*cells)
    return shown


def _summary(run: Prepared, flags: Knn, results: Results, bank: int) -> Dict[str, Any]:
    """Everything that defines the numbers, and the numbers, as json takes it."""
    some = next(iter(next(iter(results.values())).values()))
    pretrained, data = run.pretrained, run.trained.data
    transform = evaluation_transform(data.dataset, data.eval_transform, run.trained.view)
    return {
        "protocol": "weighted k-NN, appendix C.3",
        "checkpoint": str(pretrained.path),
        "sha256": file_sha256(pretrained.path),
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
                "top5_short": found.short[k],
                "top5_unvoted": found.unvoted[k],
                "recall": found.recall,
            }
            for (name, kind), by_tau in results.items()
            for tau, found in by_tau.items()
            for k in found.top1
        ],
        "k": sorted(set(flags.k)),
        "temperature": list(dict.fromkeys(flags.temperature)),
        "distance": "cosine",
        "index": flags.index,
        "bank_images": bank,
        "query_images": len(some.targets),
        "classes": some.classes,
        "dataset": data.dataset,
        "train_data_path": str(data.train_path),
        "val_data_path": str(data.val_path),
        "subsets": drawn_of(data, run.train, run.val),
        "transform": " ".join(str(transform).split()),
        "feature_dtype": f"{flags.feature_dtype} unit rows, searched in float32",
        "faiss": faiss.__version__,
        **provenance(machine_of_evaluation(run.device), pretrained.args),
    }
