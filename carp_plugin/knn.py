"""Offline k-NN of one checkpoint: every network and feature of it, one table, and one JSON line that defines it."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

import faiss
import torch
import torch.nn as nn
from omegaconf import DictConfig
from rich.table import Table

from carp_plugin.callbacks.history import write_json
from carp_plugin.checks import DATASETS, check_data, prepare_data_folder
from carp_plugin.data.loaders import evaluation_transform, labelled_loaders
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.evaluation.checkpoint import Pretrained, load_pretrained
from carp_plugin.evaluation.knn import KnnResult, classify
from carp_plugin.evaluation.search import INDEXES, search
from carp_plugin.evaluation.state import NETWORKS
from carp_plugin.evaluation.store import Features, stream
from carp_plugin.host import omegaconf_select
from carp_plugin.report import provenance, say

FEATURES = ("backbone", "projector")
FORMATS = ("image_folder", "h5")

#: (network, features) -> temperature -> what was measured.
Results = Dict[Tuple[str, str], Dict[float, KnnResult]]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a user's mistake like any other: one sentence."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = did_you_mean(unknown.group(1), flags).partition("; choose from")[0]
            raise UserError(
                f"{unknown.group(1)} is not a flag of {self.prog}{near or '; see --help.'}"
            )
        raise UserError(f"{message.rstrip('.')}; see {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The flags: those of solo-learn's ``main_knn.py``, of which only the checkpoint is required, and our own."""
    flags = _Parser(
        prog="main_knn.py",
        allow_abbrev=False,
        description="k-NN of a checkpoint (appendix C.3); what is left out is taken from the args.json beside it.",
    )
    add = flags.add_argument
    add(
        "--pretrained_checkpoint_dir",
        type=Path,
        required=True,
        help="a run's folder or a .ckpt file",
    )
    add("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    add("--temperature", type=float, nargs="+", default=[0.07], help="tau of the votes")
    add("--feature_type", nargs="+", choices=FEATURES, help="all that the method has")
    add("--networks", nargs="+", choices=NETWORKS, help="all that the method has")
    add("--distance_function", nargs="+", choices=["cosine", "euclidean"], default=["cosine"])
    add("--dataset", choices=DATASETS)
    add("--train_data_path", type=Path, help="images of the bank, one folder a class")
    add("--val_data_path", type=Path, help="images of the queries")
    add("--data_format", choices=FORMATS)
    add("--batch_size", type=int, help="images at once")
    add("--num_workers", type=int, help="processes that read images")
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
    add("--device", help="cpu, cuda or cuda:N; a card where there is one")
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
    device = _device(args.device)
    pretrained = load_pretrained(args.pretrained_checkpoint_dir)
    say(pretrained.sentence)
    chosen = _chosen(pretrained, args)
    cfg = data_cfg(pretrained.cfg, args)
    train, val = _loaders(cfg)
    if max(args.k) > len(train.dataset):
        raise UserError(
            f"--k {max(args.k)} is larger than the bank of {len(train.dataset)} training images; give smaller ones."
        )
    networks = {
        name: (
            pretrained.backbone(name).to(device),
            {
                kind: nn.Identity() if kind == "backbone" else pretrained.projector(name).to(device)
                for kind in kinds
            },
        )
        for name, kinds in chosen.items()
    }
    banks, queries = (
        stream(networks, loader, device, f"{split} images", args.store and args.store / split)
        for split, loader in (("train", train), ("val", val))
    )
    results = {
        (name, kind): _measure(banks[f"{name}/{kind}"], queries[f"{name}/{kind}"], args, device)
        for name, kinds in chosen.items()
        for kind in kinds
    }
    say(table(results, f"{pretrained.method}: k-NN accuracy on the validation images, %"))
    for (name, kind), found in results.items():
        recall = next(iter(found.values())).recall
        if recall is not None:
            say(f"{args.index}: found {recall:.2%} of the {max(args.k)} neighbours, {name} {kind}")
    summary = _summary(pretrained, cfg, args, device, results, len(train.dataset))
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
    for flag, low in (("k", 1), ("batch_size", 1), ("num_workers", 0)):
        given = getattr(args, flag)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < low:
                raise UserError(f"--{flag} must be at least {low}, got {value}.")
    for value in args.temperature:
        if not 0 < value < float("inf"):
            raise UserError(f"--temperature must be a positive number, got {value}.")
    if args.json and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder; give a file.")
    if args.store and args.store.exists() and not args.store.is_dir():
        raise UserError(f"--store {args.store} is a file; give a folder.")


def _device(name: Optional[str]) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name} is unknown; choose from cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there; this machine has {torch.cuda.device_count()} cards."
        )
    return device


def _chosen(pretrained: Pretrained, args: argparse.Namespace) -> Dict[str, List[str]]:
    """Network -> features: those asked for, which must be there, or all that there are.

    Raises:
        UserError: the method has no such network.
    """
    chosen: Dict[str, List[str]] = {}
    for name in dict.fromkeys(args.networks or pretrained.networks):
        pretrained.backbone(name)
        kinds = list(dict.fromkeys(args.feature_type or FEATURES))
        if "projector" in kinds and (args.feature_type or pretrained.has_projector(name)):
            pretrained.projector(name)
        elif "projector" in kinds:
            kinds.remove("projector")
        chosen[name] = kinds
    return chosen


def data_cfg(cfg: DictConfig, args: argparse.Namespace) -> DictConfig:
    """The configuration of the pretraining with the data that the flags name; a copy.

    Another data set than the pretraining's is brought to a size by the host's own transform for it.
    """
    cfg = copy.deepcopy(cfg)
    if args.dataset not in (None, cfg.data.dataset):
        cfg.data.dataset = args.dataset
        cfg.data.eval_transform = None
    if args.train_data_path or args.val_data_path:
        cfg.data.prepare = None
    if args.train_data_path and args.val_data_path:
        cfg.data.no_labels = False
    for key, value in (
        ("train_path", args.train_data_path),
        ("val_path", args.val_data_path),
        ("format", args.data_format),
        ("num_workers", args.num_workers),
    ):
        if value is not None:
            cfg.data[key] = str(value) if isinstance(value, Path) else value
    if args.batch_size is not None:
        cfg.optimizer.batch_size = args.batch_size
    return cfg


def _loaders(cfg: DictConfig) -> Any:
    """Loaders of the bank and the queries.

    Raises:
        UserError: folders that are missing or differ in classes, or no labelled images; in the words of the flags.
    """
    try:
        if (
            omegaconf_select(cfg, "data.no_labels")
            or omegaconf_select(cfg, "data.val_path") is None
        ):
            raise UserError(
                "the pretraining had no labelled validation images; give --train_data_path and --val_data_path."
            )
        prepare_data_folder(cfg)
        check_data(cfg)
        return labelled_loaders(cfg)
    except UserError as error:
        said = re.sub(r"data\.(train|val)_path=", r"--\1_data_path ", str(error))
        raise UserError(said.replace("data.format=", "--data_format ")) from error


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


def _summary(
    pretrained: Pretrained,
    cfg: DictConfig,
    args: argparse.Namespace,
    device: torch.device,
    results: Results,
    bank: int,
) -> Dict[str, Any]:
    """Everything that defines the numbers, and the numbers, as json takes it."""
    some = next(iter(next(iter(results.values())).values()))
    ran = copy.deepcopy(cfg)
    ran.accelerator, ran.devices = device.type, [device.index or 0]
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
        "feature_dtype": "float16 unit rows, searched in float32",
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
