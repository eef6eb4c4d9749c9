"""What evaluating a checkpoint on labelled images needs: the networks, the features that are meant, the images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, get_args

import torch
import torch.nn as nn

from carp_plugin.data import idx
from carp_plugin.data.folders import check_data, prepare_data_folder
from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.data.remarks import remarks_on, say_remarks
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import Pretrained, load_pretrained
from carp_plugin.settings.offline import Offline
from carp_plugin.settings.parts import FeatureKind
from carp_plugin.settings.trained import Trained, TrainedData
from carp_plugin.terminal import say
from carp_plugin.training.devices import Machine

FEATURES: Tuple[str, ...] = get_args(FeatureKind)


@dataclass(frozen=True)
class Prepared:
    """A checkpoint, and the labelled images that it is evaluated on.

    Attributes:
        pretrained: the method with its weights.
        trained: what is known of its pretraining, with the data that the flags name.
        device: where features are computed.
        chosen: network -> its features, of ``"backbone"`` and ``"projector"``.
        train: loader of (images, labels) of the training images, without augmentation and in order, or
            None where no labelled images are read.
        val: loader of the validation images; None as well.
        remarks: what was said of the images, for the record.
    """

    pretrained: Pretrained
    trained: Trained
    device: torch.device
    chosen: Dict[str, List[str]]
    train: Any
    val: Any
    remarks: List[str] = field(default_factory=list)

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


def prepare(flags: Offline, labelled: bool = True) -> Prepared:
    """Loads the checkpoint that the flags name, says so, and opens the images.

    Args:
        flags: of the command.
        labelled: whether labelled images are read at all.

    Raises:
        UserError: a mistake in the flags, the checkpoint or the data.
    """
    device = _device(flags.device)
    pretrained = load_pretrained(flags.pretrained_checkpoint_dir)
    say(pretrained.sentence)
    chosen = _chosen(pretrained, flags)
    trained = with_flags(pretrained.trained, flags)
    (train, val), remarks = _loaders(trained) if labelled else ((None, None), [])
    return Prepared(pretrained, trained, device, chosen, train, val, remarks)


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


def _chosen(pretrained: Pretrained, flags: Offline) -> Dict[str, List[str]]:
    """Network -> features: those asked for, which must be there, or all that there are.

    Raises:
        UserError: the method has no such network.
    """
    chosen: Dict[str, List[str]] = {}
    for name in dict.fromkeys(flags.networks or pretrained.networks):
        pretrained.backbone(name)
        kinds = list(dict.fromkeys(flags.feature_type or FEATURES))
        if "projector" in kinds and (flags.feature_type or pretrained.has_projector(name)):
            pretrained.projector(name)
        elif "projector" in kinds:
            kinds.remove("projector")
        chosen[name] = kinds
    return chosen


def with_flags(trained: Trained, flags: Offline) -> Trained:
    """What is known of a pretraining with the data that the flags name; a copy.

    Another data set than the pretraining's is brought to a size by the host's own transform for it. Images in another
    place are all taken, unless the flags say how many.
    """
    changes: Dict[str, Any] = {}
    if flags.dataset not in (None, trained.data.dataset):
        changes.update(dataset=flags.dataset, eval_transform=None)
        if flags.dataset == idx.NAME:
            changes.update(train_path=idx.AUTO, val_path=idx.AUTO, prepare=None, no_labels=False)
    if changes or flags.train_data_path:
        changes.update(train_images=None, holdout=None)
    if changes or flags.val_data_path:
        changes.update(val_images=None)
    if flags.train_data_path or flags.val_data_path:
        changes["prepare"] = None
    if flags.train_data_path and flags.val_data_path:
        changes["no_labels"] = False
    for key, value in (
        ("train_path", flags.train_data_path),
        ("val_path", flags.val_data_path),
        ("format", flags.data_format),
        ("num_workers", flags.num_workers),
        ("train_images", flags.train_images),
        ("val_images", flags.val_images),
        ("subset_seed", flags.subset_seed),
    ):
        if value is not None:
            changes[key] = value
    optimizer = trained.optimizer
    if flags.batch_size is not None:
        optimizer = optimizer.model_copy(update={"batch_size": flags.batch_size})
    data = trained.data.model_copy(update=changes)
    return trained.model_copy(update={"data": data, "optimizer": optimizer})


def machine_of_evaluation(device: torch.device) -> Machine:
    """What an evaluation ran on, for its record."""
    return Machine(device.type, (device.index or 0,))


def _loaders(trained: Trained) -> Any:
    """Loaders of the training and the validation images, and what was said of these.

    Raises:
        UserError: folders that are missing or differ in classes, or no labelled images; in the words of the flags.
    """
    data: TrainedData = trained.data
    try:
        if data.no_labels or data.val_path is None or data.train_path is None:
            raise UserError(
                "the pretraining had no labelled validation images; give --train_data_path and --val_data_path."
            )
        prepare_data_folder(data.prepare, data.train_path)
        check_data(data)
        remarks = remarks_on(data, flags=True)
        say_remarks(remarks)
        return labelled_loaders(data, trained.view, trained.optimizer.batch_size), remarks
    except UserError as error:
        said = re.sub(r"data\.(train|val)_path=", r"--\1_data_path ", str(error))
        said = re.sub(r"data\.(train|val)_images=", r"--\1_images ", said)
        raise UserError(said.replace("data.format=", "--data_format ")) from error
