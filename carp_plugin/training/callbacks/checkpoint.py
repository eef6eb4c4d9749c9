"""Checkpoints that are whole or not there, the last two of a run: the host's checkpointer, made safe."""

from __future__ import annotations

import errno
import glob
import os
import zipfile
from pathlib import Path
from typing import IO, Any, Dict, List, Mapping, Optional

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import torch.nn as nn
from lightning.pytorch.plugins.io import TorchCheckpointIO

from carp_plugin.errors import UserError
from carp_plugin.host import Checkpointer as HostCheckpointer
from carp_plugin.host.cfg import node
from carp_plugin.training.callbacks.history import write_json
from carp_plugin.training.callbacks.host_state import make_room
from carp_plugin.training.state import fit, place_in_name, read_checkpoint

#: Checkpoints of a run that stay where ``checkpoint.keep_prev`` does not keep them all: the newest, and the one before
#: in case the newest is found damaged.
KEPT = 2

_UNFINISHED = ".part"
_DAMAGED = ".damaged"
_LOCK = ".lock"

#: What a checkpoint of Lightning's holds besides the weights, without which training cannot go on.
_OF_TRAINING = ("pytorch-lightning_version", "optimizer_states", "lr_schedulers", "loops")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed or a full machine leaves no torn checkpoint."""

    def save_checkpoint(
        self, checkpoint: Dict[str, Any], path: Any, storage_options: Optional[Any] = None
    ) -> None:
        """Saves ``checkpoint`` under ``path``; once this returns, it is on the disk.

        Raises:
            UserError: the file cannot be written; an earlier checkpoint of that name is intact.
        """
        # SimSiam's schedule carries the function that keeps its predictor's rate; weights_only would refuse it.
        for state in checkpoint.get("lr_schedulers", []):
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]
        # channels_last is a matter of strides, which other readers of the file refuse or would take over.
        weights = checkpoint.get("state_dict", {})
        checkpoint = {**checkpoint, "state_dict": {n: t.contiguous() for n, t in weights.items()}}
        target = Path(path)
        unfinished = target.with_name(target.name + f".{os.getpid()}{_UNFINISHED}")
        try:
            super().save_checkpoint(checkpoint, unfinished, storage_options)
            _settle(unfinished)
            os.replace(unfinished, target)
            _settle(target.parent)
        except (OSError, RuntimeError) as error:
            reason = _why_not_written(error)
            if reason is None:
                raise
            raise UserError(
                f"the checkpoint {target} cannot be written ({reason}); earlier checkpoints are intact: "
                "make room or give another checkpoint.dir, and the same command resumes if auto_resume.enabled=True."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk: a machine that loses its power keeps them."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_not_written(error: BaseException) -> Optional[str]:
    """The reason of a failed write in words, None if the error is something else."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    written = any(word in str(error) for word in ("PytorchStreamWriter", "file write", "iostream"))
    return os.strerror(errno.ENOSPC) + "?" if written else None


class Checkpointer(HostCheckpointer):
    """The host's checkpointer, for runs that are interrupted.

    It saves the last epoch whatever ``frequency`` is, and within an epoch where a run is stopped; it keeps the last
    ``KEPT`` checkpoints; and a run that resumes itself goes on in its own folder.

    Args:
        name: of the run.
        logdir: folder of the method's runs.
        frequency: epochs between two checkpoints.
        keep_prev: keep all earlier ones.
        args: what ``args.json`` is to hold.
        resumed: the checkpoint of this very run that it goes on from.
    """

    def __init__(
        self,
        name: str,
        logdir: Path,
        frequency: int,
        keep_prev: bool,
        args: Mapping[str, Any],
        resumed: Optional[Path] = None,
    ) -> None:
        super().__init__(node({"name": name}), logdir, frequency, keep_prev)
        self.path: Path  # of the run's folder
        self.ckpt_placeholder: str  # name of a checkpoint, with {} for its place
        self.keep_all, self.args_json, self.resumed = keep_prev, args, resumed
        self._claim: Optional[IO[str]] = None

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """All ranks go on from the same checkpoint; Lightning restores it after this.

        Raises:
            UserError: on every rank, if one of them found another checkpoint than rank 0 did, or none.
        """
        own = None if self.resumed is None else str(self.resumed)
        first = trainer.strategy.broadcast(own)
        if trainer.strategy.reduce_boolean_decision(own != first, all=False):
            raise UserError(
                f"the processes of this run found different checkpoints to resume from (rank {trainer.global_rank}: "
                f"{own or 'none'}); all must see the same checkpoint.dir, in which no other process trains this run."
            )

    def initial_setup(self, trainer: Any) -> None:
        """The run's folder, a new one or its own again, which no other process may train in meanwhile.

        Raises:
            UserError: on every rank, if another process does.
        """
        if self.resumed is None:
            super().initial_setup(trainer)
            # its name is drawn, by every rank for itself
            names = (str(self.path), self.ckpt_placeholder)
            path, self.ckpt_placeholder = trainer.strategy.broadcast(names)
            self.path = Path(path)
        else:
            self.path = self.resumed.parent
            self.ckpt_placeholder = self.resumed.name.rsplit("-ep=", 1)[0] + "-ep={}.ckpt"
            self.last_ckpt = str(self.resumed)
        taken = False
        if trainer.is_global_zero:
            self._claim = claim(self.path)
            taken = self._claim is None
        if trainer.strategy.reduce_boolean_decision(taken, all=False):
            raise UserError(
                f"another process is training in {self.path}; wait for it, or begin anew with "
                "auto_resume.enabled=False."
            )
        if trainer.is_global_zero and self.resumed is not None:
            self._tidy(self.resumed)

    def _tidy(self, resumed: Path) -> None:
        """What a killed process left half-written goes; what was passed over as damaged gets another name."""
        for unfinished in self.path.glob(f"*{_UNFINISHED}"):
            unfinished.unlink(missing_ok=True)
        for path in self._written():
            if place_in_name(path) > place_in_name(resumed):
                path.replace(path.with_name(path.name + _DAMAGED))

    def save_args(self, trainer: Any) -> None:
        """Writes the configuration, interpolations resolved, for evaluations and for whoever resumes."""
        if trainer.is_global_zero:
            wandb = None if trainer.logger is None else str(trainer.logger.version)
            write_json(self.path / "args.json", {**self.args_json, "wandb_run_id": wandb})

    def save(self, trainer: Any) -> None:
        """Saves a checkpoint of a whole epoch; on every rank, for Lightning synchronises them while saving."""
        self._save(trainer, str(trainer.current_epoch))

    def save_within_epoch(self, trainer: Any) -> Path:
        """Saves a checkpoint between two steps; a run that resumes from it goes on within the epoch.

        Returns:
            Path: of the checkpoint.
        """
        self._save(trainer, f"{trainer.current_epoch}-step={trainer.global_step}")
        return Path(str(self.last_ckpt))

    def is_saved(self, trainer: Any) -> bool:
        """Whether the last checkpoint is that of the whole current epoch."""
        return str(self.last_ckpt).endswith(f"-ep={trainer.current_epoch}.ckpt")

    def _save(self, trainer: Any, place: str) -> None:
        if trainer.sanity_checking:
            return
        path = self.path / self.ckpt_placeholder.format(place)
        trainer.save_checkpoint(path)
        self.last_ckpt = str(path)
        if trainer.is_global_zero and not self.keep_all:
            for superseded in self._written()[:-KEPT]:
                superseded.unlink(missing_ok=True)

    def _written(self) -> List[Path]:
        """This run's checkpoints, the earliest first."""
        pattern = glob.escape(self.ckpt_placeholder.rsplit("-ep=", 1)[0]) + "-ep=*.ckpt"
        return sorted(self.path.glob(pattern), key=place_in_name)

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Saves when the epoch is due, or the last one."""
        due = trainer.current_epoch % self.frequency == 0
        if due or is_last_epoch(trainer) or trainer.should_stop:
            self.save(trainer)


def is_last_epoch(trainer: Any) -> bool:
    """Whether nothing is left to train once the current epoch has ended."""
    reached = 0 < trainer.max_steps <= trainer.global_step
    return trainer.current_epoch + 1 == trainer.max_epochs or reached


def claim(folder: Path) -> Optional[IO[str]]:
    """Marks a run's folder as being trained in, for as long as the file is open and the process lives.

    Returns:
        The open file; None where another process has the folder. Where files cannot be locked the mark means nothing.
    """
    file = open(folder / _LOCK, "w")
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
    return file


def in_use(folder: Path) -> bool:
    """Whether another process is training in a run's folder."""
    if not (folder / _LOCK).is_file():
        return False
    file = claim(folder)
    if file is not None:
        file.close()
    return file is None


def damage(path: Path) -> Optional[str]:
    """What is wrong with a checkpoint as a file, None if every bit is as it was written.

    Args:
        path: of the file, which is read whole.
    """
    try:
        read_checkpoint(path)
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except (UserError, OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None if torn is None else f"the checkpoint {path} is damaged: {torn} in it has changed."


def check_checkpoint(path: Path, model: nn.Module) -> Dict[str, Any]:
    """Checks that training can go on from a checkpoint: it holds all tensors of the model, no others, and the rest.

    The model is given room for buffers that its method makes only while it trains (:func:`make_room`), for Lightning
    loads them too.

    Returns:
        Dict[str, Any]: what the checkpoint holds.

    Raises:
        UserError: the file is torn, no checkpoint of a training, or its tensors are another model's.
    """
    content = read_checkpoint(path)
    state = content["state_dict"]
    make_room(model, state)
    result = fit(model.state_dict(), state)
    if result.complaint():
        raise UserError(f"the checkpoint {path} is of another model: {result.complaint()}.")
    lacking = [key for key in _OF_TRAINING if key not in content]
    if lacking:
        raise UserError(
            f"the checkpoint {path} holds weights but no {lacking[0]}, so training cannot go on from it; "
            "give one that a training run wrote."
        )
    return content
