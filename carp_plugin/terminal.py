"""What is printed, and which process prints it: of many ranks, one speaks.

Nothing that is printed costs a result: see :class:`Lasting`. Nothing of torch or of solo-learn is imported: mistakes
are said before either is there.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager, suppress
from typing import Any, Iterator, Optional


class _Nowhere(io.TextIOBase):
    """Takes any text."""

    encoding = "utf-8"  # type: ignore[assignment]

    def write(self, text: str) -> int:
        return len(text)


class Lasting:
    """A stream that outlives what reads it.

    A reader that is gone (``| head``), a terminal that was closed or a full disk under ``> log.txt`` takes no more
    text; whoever writes goes on without it. Characters that the encoding lacks are written as ``?``.

    Args:
        stream: of text; None where the process was started without one (``>&-``).
    """

    def __init__(self, stream: Any) -> None:
        if stream is None:
            os.open(os.devnull, os.O_WRONLY)  # or the next file would be where C libraries print
        self._stream = _Nowhere() if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # ValueError: it was closed
            self._give_up()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """What is left in the buffers goes nowhere, else Python would fail on it once more when it exits."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, self._stream.fileno())
            self._stream.flush()
        os.close(nowhere)
        self._stream = _Nowhere()


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within this context all that is printed, by us or by others, is printed to streams that last."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def lasting(stream: Any) -> Any:
    """A stream that lasts; it itself where it is one already."""
    return stream if isinstance(stream, Lasting) else Lasting(stream)


def say(message: Any, style: Optional[str] = None) -> None:
    """Prints to the terminal; tables keep their width where there is none."""
    from rich.console import Console  # here: a refused command line is to be quick

    console = Console(file=lasting(sys.stdout))
    if not console.is_terminal:
        console = Console(file=console.file, width=140)
    console.print(
        message, style=style, highlight=False, markup=False, soft_wrap=isinstance(message, str)
    )


def is_main_process() -> bool:
    """Whether this is the process of global rank 0, also before a process group stands.

    torchrun says ``RANK``; a process that Lightning starts has a ``LOCAL_RANK`` on the node ``NODE_RANK``, of which the
    first process of a node may know only the latter; srun says ``SLURM_PROCID``.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ:
        return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK"))
    return not under_srun() or int(os.environ.get("SLURM_PROCID", 0)) == 0


def has_the_say() -> bool:
    """Whether a mistake that this process finds is its to say.

    Before the processes have met, all of a node find the same one, and the first of them says it. Later it may be one
    process's alone, such as an image that cannot be read.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return True
    return is_first_of_node()


def is_first_of_node() -> bool:
    """Whether this is the first process of its node."""
    local = os.environ.get("LOCAL_RANK")
    if local is None and under_srun():
        local = os.environ.get("SLURM_LOCALID")
    return int(local or 0) == 0


def under_srun() -> bool:
    """Whether Lightning takes this process for a task of SLURM's; those of an interactive shell are none."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not interactive
