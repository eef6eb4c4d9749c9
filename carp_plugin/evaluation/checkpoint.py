"""Pretrained networks from checkpoints: read without running code, loaded strictly, and said in one sentence.

``load_pretrained`` builds the whole method that ``args.json`` describes and puts every tensor of the checkpoint into
it; a tensor that is missing, left over or of another shape is an error, never a silently random weight.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

from carp_plugin import register
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import BACKBONES, METHODS
from carp_plugin.host.cfg import node
from carp_plugin.settings.reading import read
from carp_plugin.settings.trained import Trained
from carp_plugin.training.state import (
    NETWORKS,
    TRAINING_BUFFERS,
    current_names,
    epoch_in_name,
    find_checkpoint,
    fit,
    read_checkpoint,
    wrapper_in,
)

#: DINO calls its projector head.
_PROJECTOR = {
    "student": ("projector", "head"),
    "teacher": ("momentum_projector", "momentum_head"),
}


@dataclass(frozen=True)
class Pretrained:
    """A method with the weights of a checkpoint, in evaluation mode on the CPU.

    Attributes:
        path: of the checkpoint.
        trained: what ``args.json`` says of its run.
        args: all of ``args.json``.
        epoch: of the checkpoint, counted from 0.
        model: the host's LightningModule.
        tensors: how many were loaded, all that the model has.
        sentence: what was loaded, for the terminal.
    """

    path: Path
    trained: Trained
    args: Mapping[str, Any] = field(repr=False)
    epoch: int
    model: nn.Module
    tensors: int
    sentence: str

    @property
    def method(self) -> str:
        """Its name."""
        return self.trained.method

    def named(self) -> Dict[str, Any]:
        """What the settings of an evaluation may name of it: dotted key -> value."""
        return {
            "pretrain_method": self.method,
            "backbone.name": self.trained.backbone.name,
            "backbone.kwargs": self.trained.backbone.kwargs,
        }

    @property
    def networks(self) -> Tuple[str, ...]:
        """``("student",)``, or ``("student", "teacher")`` where the method has a momentum copy."""
        return tuple(name for name, attribute in NETWORKS.items() if hasattr(self.model, attribute))

    def backbone(self, which: str = "student") -> nn.Module:
        """The backbone: images (N, 3, H, W) to features (N, F).

        Raises:
            UserError: the method has no such network.
        """
        if which not in self.networks:
            raise UserError(f"{self.method} has no {which}; it has {' and '.join(self.networks)}.")
        return getattr(self.model, NETWORKS[which])

    def has_projector(self, which: str = "student") -> bool:
        """Whether a network has a projector; MAE's has none."""
        return self._projector(which) is not None

    def projector(self, which: str = "student") -> nn.Module:
        """The projector alone: features (N, F) of the backbone to embeddings (N, D).

        Raises:
            UserError: the method has no such network, or no projector in it.
        """
        self.backbone(which)
        module = self._projector(which)
        if module is None:
            raise UserError(
                f"the {which} of {self.method} has no projector; use the features of its backbone."
            )
        return module

    def _projector(self, which: str) -> Optional[nn.Module]:
        modules = (getattr(self.model, name, None) for name in _PROJECTOR[which])
        return next((module for module in modules if isinstance(module, nn.Module)), None)

    def parts(self, features: Sequence[str]) -> Dict[str, Tuple[nn.Module, Dict[str, nn.Module]]]:
        """Every network as :func:`carp_plugin.evaluation.store.stream` takes it, so that a backbone is run once.

        Args:
            features: of ``"backbone"`` and ``"projector"``; a projector that the method does not have is left out.

        Returns:
            Dict[str, Tuple[nn.Module, Dict[str, nn.Module]]]: network -> its backbone, and features -> what makes them
            of the backbone's.
        """
        found = {}
        for name in self.networks:
            heads = {
                kind: nn.Identity() if kind == "backbone" else self.projector(name)
                for kind in features
                if kind == "backbone" or self.has_projector(name)
            }
            found[name] = (self.backbone(name), heads)
        return found

    def network(self, which: str = "student", features: str = "backbone") -> nn.Module:
        """A network as one module, which shares its weights with ``model``.

        Args:
            which: ``"student"`` or ``"teacher"``, the momentum copy.
            features: ``"backbone"`` or ``"projector"``.

        Returns:
            nn.Module: images (N, 3, H, W) to features (N, F) float32.

        Raises:
            UserError: the method has no such network.
        """
        if features not in ("backbone", "projector"):
            raise UserError(f"features={features} is unknown; choose from backbone, projector")
        backbone = self.backbone(which)
        if features == "backbone":
            return backbone
        return nn.Sequential(backbone, self.projector(which)).eval()


def load_pretrained(path: Union[str, Path]) -> Pretrained:
    """Builds the method of a checkpoint through the host and loads all of its tensors strictly.

    Works for the checkpoints of carp_plugin's and of solo-learn's ``main_pretrain.py``, which write the configuration
    as ``args.json`` beside them. ``TRAINING_BUFFERS`` that are left over are the only tensors that are not loaded.

    Args:
        path: a checkpoint, or the folder of a run; see :func:`find_checkpoint`.

    Raises:
        UserError: no checkpoint or one that cannot be read, no ``args.json``, a configuration that the installed host
            cannot build, or tensors that do not fit.
    """
    path = find_checkpoint(path)
    args, trained = read_args(path)
    content = read_checkpoint(path)
    model = _built(args, trained, path)
    own, state = model.state_dict(), current_names(content["state_dict"])
    buffers = [name for name in TRAINING_BUFFERS if name in state and name not in own]
    state = {name: tensor for name, tensor in state.items() if name not in buffers}
    result = fit(own, state)
    if result.complaint():
        wrapped = wrapper_in(own, state)
        if wrapped is not None:
            raise UserError(f"the checkpoint {path} is of a wrapped model: {wrapped}.")
        backbone = any(name.startswith(tuple(NETWORKS.values())) for name in result.reshaped)
        raise UserError(
            f"the checkpoint {path} does not fit the {trained.method} on {trained.backbone.name} that its args.json "
            f"describes: {result.complaint()}; "
            + ("name another backbone there, " if backbone else "")
            + "put back the args.json that this run wrote."
        )
    model.load_state_dict(state, strict=True)
    model.eval()
    epoch = int(content.get("epoch", epoch_in_name(path)))
    tensors = result.total
    sentence = (
        f"{tensors} of {tensors} tensors loaded from {path} ({trained.method}, epoch {epoch})"
    )
    if buffers:
        sentence += f"; not needed after training and left out: {', '.join(buffers)}"
    return Pretrained(path, trained, args, epoch, model, tensors, sentence)


def agrees(pretrained: Pretrained, ours: Mapping[str, Any]) -> None:
    """What the settings of an evaluation name of a checkpoint agrees with it.

    Args:
        pretrained: the checkpoint.
        ours: keys of :meth:`Pretrained.named` and what they are set to; None agrees with anything.

    Raises:
        UserError: the first that does not.
    """
    theirs = pretrained.named()
    for key, named in ours.items():
        if named is not None and named != theirs[key]:
            raise UserError(
                f"{key}={named}, but {pretrained.path} holds {theirs[key]}; leave {key} out, or give the other "
                "checkpoint."
            )


def read_args(path: Path) -> Tuple[Dict[str, Any], Trained]:
    """The configuration beside a checkpoint, as carp_plugin and the host's own script write it.

    Args:
        path: of the checkpoint.

    Returns:
        Tuple[Dict[str, Any], Trained]: all of it, and what evaluations need of it.

    Raises:
        UserError: there is no ``args.json``, or none that names a method and a backbone.
    """
    file = path.with_name("args.json")
    if not file.is_file():
        raise UserError(
            f"there is no args.json beside {path}; the method cannot be built without the configuration that its "
            "training run wrote there: keep both files together."
        )
    try:
        args = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} cannot be read ({' '.join(str(error).split())[:120]}); copy it again."
        ) from error
    if not isinstance(args, dict):
        raise UserError(f"{file} must hold the keys of a configuration, got a list.")
    for dotted in ("method", "backbone.name", "data.dataset"):
        if not isinstance(_at(args, dotted), str):  # solo-learn 1.0.2's own scripts write flat ones
            raise UserError(
                f"{file} has no {dotted}; expected the configuration that carp_plugin, or solo-learn 1.0.6 and later, "
                "writes beside its checkpoints."
            )
    register()
    for dotted, known in (("method", METHODS), ("backbone.name", BACKBONES)):
        value = _at(args, dotted)
        if value not in known:
            raise UserError(
                f"{file} names {dotted}={value}, which the installed solo-learn does not have"
                f"{did_you_mean(str(value), known)}"
            )
    try:
        return args, read(Trained, args)
    except UserError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _at(args: Mapping[str, Any], dotted: str) -> Any:
    value: Any = args
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _built(args: Mapping[str, Any], trained: Trained, path: Path) -> nn.Module:
    """The method of a configuration, with random weights."""
    try:
        with advice_silenced():
            model = METHODS[trained.method](node(args))
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"the args.json beside {path} does not build a {trained.method} on the installed solo-learn ({reason}); "
            "evaluate it with the release that trained it."
        ) from error
    if not trained.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    return model


@contextmanager
def advice_silenced() -> Iterator[None]:
    """The host warns about schedules when it builds a module; what is meant by them is checked before."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
