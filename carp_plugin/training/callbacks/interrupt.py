"""Signals and a time limit during training: the step is finished, a checkpoint written, and the run leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, Dict, Optional

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import Callback

from carp_plugin.errors import worker_ended
from carp_plugin.training.callbacks.checkpoint import Checkpointer, is_last_epoch

#: Optimizer steps between two looks at whether another rank was told to stop; each is a small all-reduce.
STEPS_BETWEEN_LOOKS = 10

#: A closed terminal or connection, and what schedulers send before they kill: SLURM's ``--signal``, LSF at its limits,
#: Grid Engine's ``-notify``. Windows has none of them.
_OF_UNIX = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *_OF_UNIX)


def duration(text: Optional[str]) -> Optional[timedelta]:
    """What DD:HH:MM:SS means."""
    if text is None:
        return None
    days, hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def part_in_peace() -> None:
    """Lets this process leave as it likes when it has been told to stop, as the others of its node leave or are killed.

    Lightning's observer looks every five seconds whether one of them has ended with another code than 0, and would
    then kill this one: it would leave with -9, if it had not left before, and say nothing.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._run = lambda: True  # type: ignore[method-assign]


class Stopped(KeyboardInterrupt):
    """The run was told to stop.

    Attributes:
        code: to exit with, 128 and the number of the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + signum


class StopsInPeace(Callback):
    """Turns a signal into a checkpoint between two steps, on all ranks the same.

    The first of ``SIGNALS`` is noted; before the next step that starts with no gradients accumulated the
    checkpoint is written and the run left. A validation is finished first, for the epoch's numbers would be lost
    without it, but what was trained before it is saved at once. A second Ctrl-C leaves at once, and what was trained
    since the last checkpoint is lost. Lightning's own handler of SIGTERM, which leaves in the middle of things, is
    replaced for the time of training. A SIGHUP that was ignored stays so: that is what ``nohup`` is for.

    A time limit is a SIGTERM that the process sends itself. It counts from the first step of this process, whatever
    others trained before it, and leaves it at least one step, so that a chain of processes comes to an end.

    Args:
        checkpointer: None saves nothing.
        accumulated: batches whose gradients make an optimizer step.
        max_time: that this process may train, validation included; None sets no limit.
    """

    def __init__(
        self,
        checkpointer: Optional[Checkpointer],
        accumulated: int,
        max_time: Optional[timedelta] = None,
    ) -> None:
        self.checkpointer, self.accumulated = checkpointer, accumulated
        self.signal: Optional[int] = None
        self.max_time = max_time
        #: Whether it was the time limit that stopped the run.
        self.out_of_time = False
        self._deadline: Optional[float] = None
        self._before: Dict[int, Any] = {}
        self._listening = False
        self._safe = False
        self._whole_step = True

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Remembers what signals did before Lightning set handlers of its own."""
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        for signum in _OF_UNIX:
            if self._before[signum] == signal.SIG_IGN:
                del self._before[signum]

    def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
        self._listen()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._listen()
        if self.max_time is not None:
            self._deadline = time.monotonic() + self.max_time.total_seconds()

    def _listen(self) -> None:
        """Lightning sets its handlers after every hook that is called before these two."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            return  # only the main thread can
        self._listening = True
        for signum in self._before:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: Any) -> None:
        if self.signal is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return  # schedulers say it twice
        self.signal = signum
        if os.environ.get("LOCAL_RANK", "0") == "0":
            # not print: the signal may have come while something was being printed; SIGHUP, as the terminal went away
            with suppress(OSError):
                os.write(
                    2,
                    b"\nstopping: finishing this step and saving it first (Ctrl-C again leaves at once)\n",
                )

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Saves and leaves before this batch if the run was told to stop."""
        step, inside = divmod(batch_idx, self.accumulated)
        if inside == 0 and self._told(trainer, step):
            self._save_within_epoch(trainer)
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._whole_step = (batch_idx + 1) % self.accumulated == 0 or trainer.is_last_batch
        if self.signal is None and self._deadline is not None and self._whole_step:
            if time.monotonic() >= self._deadline:
                self.signal, self.out_of_time = signal.SIGTERM, True

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Saves if the run was told to stop; in the check before training there is nothing to save.

        Nor is there where gradients are accumulated, which a checkpoint does not hold: the step is finished first.
        """
        if self._safe or not self._whole_step or not self._told(trainer, batch_idx):
            return
        if trainer.sanity_checking:
            raise KeyboardInterrupt
        self._save_within_epoch(trainer)
        self._safe = True

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Leaves after the epoch was saved; stands behind the checkpointer, which may not have found it due.

        A time limit that is over when nothing is left to train is kept.
        """
        if is_last_epoch(trainer) and self.out_of_time:
            self.signal, self.out_of_time = None, False
        if self._told(trainer, 0):
            if self.checkpointer is not None and not self.checkpointer.is_saved(trainer):
                self.checkpointer.save(trainer)
            raise KeyboardInterrupt

    def _told(self, trainer: Any, step: int) -> bool:
        told = self.signal is not None
        if trainer.world_size == 1:
            return told
        if step % STEPS_BETWEEN_LOOKS:
            return False
        return bool(trainer.strategy.reduce_boolean_decision(told, all=False))

    def _save_within_epoch(self, trainer: Any) -> None:
        if self.checkpointer is not None:
            self.checkpointer.save_within_epoch(trainer)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """What was to be saved is; Lightning kills the other processes of the node next.

        A loader's worker that has ended is found out between two steps, so that they are saved; on several ranks the
        others do not wait for a checkpoint, and the last one stands.
        """
        between = trainer.training and not trainer.sanity_checking and self._whole_step
        if between and trainer.world_size == 1 and worker_ended(exception) is not None:
            self._save_within_epoch(trainer)
        if isinstance(exception, KeyboardInterrupt):
            part_in_peace()
        self._restore()

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._listening:
            self._listening = False
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
