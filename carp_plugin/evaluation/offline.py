"""What evaluating a checkpoint on labelled images by flags needs: the flags, their checks, the images, the networks.

``main_knn.py`` and ``main_umap.py`` add their own flags to :func:`data_parser` and get the rest from :func:`prepare`.
"""

from __future__ import annotations

import argparse
import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.evaluation.checkpoint import Pretrained, load_pretrained
from carp_plugin.host import omegaconf_select
from carp_plugin.settings.checks import DATASETS, check_data, prepare_data_folder
from carp_plugin.terminal import say
from carp_plugin.training.state import NETWORKS

FEATURES = ("backbone", "projector")
FORMATS = ("image_folder", "h5")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a user's mistake like any other: one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print.

        Raises:
            UserError: always; near misses of a flag that is not known.
        """
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = did_you_mean(unknown.group(1), flags).partition("; choose from")[0]
            raise UserError(
                f"{unknown.group(1)} is not a flag of {self.prog}{near or '; see --help.'}"
            )
        raise UserError(f"{message.rstrip('.')}; see {self.prog} --help.")


def data_parser(prog: str, description: str, features: Optional[Sequence[str]] = None) -> Parser:
    """The flags of solo-learn's offline scripts, of which only the checkpoint is required, and the networks.

    Args:
        prog: name of the script.
        description: what it does.
        features: default of ``--feature_type``; None is all that the method has.
    """
    flags = Parser(prog=prog, allow_abbrev=False, description=description)
    add = flags.add_argument
    add(
        "--pretrained_checkpoint_dir",
        type=Path,
        required=True,
        help="a run's folder or a .ckpt file",
    )
    add(
        "--feature_type",
        nargs="+",
        choices=FEATURES,
        default=features,
        help=" ".join(features) if features else "all that the method has",
    )
    add("--networks", nargs="+", choices=NETWORKS, help="all that the method has")
    add("--dataset", choices=DATASETS)
    add("--train_data_path", type=Path, help="training images, one folder a class")
    add("--val_data_path", type=Path, help="validation images, in folders of the same names")
    add("--data_format", choices=FORMATS)
    add("--batch_size", type=int, help="images at once")
    add("--num_workers", type=int, help="processes that read images")
    add("--device", help="cpu, cuda or cuda:N; a card where there is one")
    return flags


@dataclass(frozen=True)
class Offline:
    """A checkpoint, and the labelled images that it is evaluated on.

    Attributes:
        pretrained: the method with its weights.
        cfg: the configuration of its pretraining with the data that the flags name.
        device: where features are computed.
        chosen: network -> its features, of ``"backbone"`` and ``"projector"``.
        train: loader of (images, labels) of the training images, without augmentation and in order.
        val: loader of the validation images.
    """

    pretrained: Pretrained
    cfg: DictConfig
    device: torch.device
    chosen: Dict[str, List[str]]
    train: DataLoader
    val: DataLoader

    @property
    def columns(self) -> List[Tuple[str, str]]:
        """(network, features) of everything that was chosen."""
        return [(name, kind) for name, kinds in self.chosen.items() for kind in kinds]

    def networks(self) -> Dict[str, Tuple[nn.Module, Dict[str, nn.Module]]]:
        """What was chosen, on the device, as :func:`carp_plugin.evaluation.store.stream` takes it."""
        return {
            name: (
                self.pretrained.backbone(name).to(self.device),
                {
                    kind: nn.Identity()
                    if kind == "backbone"
                    else self.pretrained.projector(name).to(self.device)
                    for kind in kinds
                },
            )
            for name, kinds in self.chosen.items()
        }


def prepare(args: argparse.Namespace) -> Offline:
    """Loads the checkpoint that the flags name, says so, and opens the images.

    Args:
        args: parsed by a :func:`data_parser`.

    Raises:
        UserError: a mistake in these flags, the checkpoint or the data.
    """
    check_at_least(args, "batch_size", 1)
    check_at_least(args, "num_workers", 0)
    device = _device(args.device)
    pretrained = load_pretrained(args.pretrained_checkpoint_dir)
    say(pretrained.sentence)
    chosen = _chosen(pretrained, args)
    cfg = data_cfg(pretrained.cfg, args)
    train, val = _loaders(cfg)
    return Offline(pretrained, cfg, device, chosen, train, val)


def check_at_least(args: argparse.Namespace, flag: str, low: int) -> None:
    """Every number that was given for a flag is at least ``low``.

    Raises:
        UserError: the first that is not.
    """
    given = getattr(args, flag)
    for value in given if isinstance(given, list) else [given]:
        if value is not None and value < low:
            raise UserError(f"--{flag} must be at least {low}, got {value}.")


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
    """Loaders of the training and the validation images.

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
