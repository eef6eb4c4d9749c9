"""Errors that a user can mend: each is one sentence that says what was wrong, what was expected and what to do.

Entry points catch :class:`UserError`, print its sentence and leave with exit code 2 instead of a stack trace.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Iterable, Optional


class UserError(Exception):
    """A mistake in what the user gave: a key, a value, a path or a missing package."""


class LonelyError(UserError):
    """A mistake that whichever process finds it says: its own place among others is what is wrong."""


class HostError(UserError, ImportError):
    """solo-learn is not installed, or it is a release that the door does not know."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Near misses of ``word`` among ``known`` as the tail of a sentence, or all of them if they are few.

    Args:
        word: what the user typed.
        known: what would have been right.

    Returns:
        str: ``"; did you mean 'byol'?"``, ``"; choose from a, b, c"`` or an empty string.
    """
    names = sorted(str(name) for name in known)
    near = difflib.get_close_matches(str(word), names, n=2, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    if 0 < len(names) <= 30:
        return "; choose from " + ", ".join(names)
    return ""


def worker_ended(error: BaseException) -> Optional[str]:
    """What became of a loader's worker, in the words of torch's DataLoader: killed, out of memory, ended by itself.

    Args:
        error: any.

    Returns:
        Optional[str]: a sentence without its full stop, which asks for fewer workers or more room; None if the error
        is about something else.
    """
    found = re.search(
        r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?P<how>is killed by signal: \w[\w ]*|exited \w+)",
        str(error),
    )
    if found is None or not isinstance(error, RuntimeError):
        return None
    how = found["how"].strip()
    full = "Bus error" in how
    likely = (
        "/dev/shm is full"
        if full
        else "most likely the machine, or the job's limit, ran out of memory"
    )
    mend = (
        "give /dev/shm (of a container: its shm size) more room"
        if full
        else "give the job more memory"
    )
    return (
        f"a worker that reads images (process {found['pids'].strip()}) has ended: it {how}; {likely}: {mend}, or have "
        "fewer workers"
    )


def typed(key: str, value: str) -> str:
    """A setting as it can be pasted into a shell: ``key=value``, the value in quotes where the shell needs them."""
    return f"{key}={shlex.quote(value)}"
