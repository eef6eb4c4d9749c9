"""A process of its own for each measurement: forked from a server that has imported torch and not used it yet.

A process that has computed already keeps threads, kernels and memory, which the next measurement would find. Starting
Python and importing torch costs seconds, so one small server does that once and forks for every call. It must stay free
of threads: nothing here imports more than torch and the loss. Unix only.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any, Callable, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent


class Died(Exception):
    """A measurement's process ended without a result, as one does that the system kills for its memory."""


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function(*arguments)`` returns, called in a new process.

    Args:
        function: of a module's top level.
        arguments: that can be pickled, as the result must.

    Raises:
        Died: the process raised an exception or was killed; the message says which.
    """
    # By name, for a module that is run as a script is called __main__ here only.
    question = function.__module__, function.__qualname__, arguments
    server = _server()
    assert server.stdin and server.stdout
    try:
        _send(server.stdin, pickle.dumps(question))
        answer = _receive(server.stdout)
    except BrokenPipeError:
        answer = None
    except BaseException:
        _stop()
        raise
    if answer is None:
        _stop()
        raise Died("the server that starts measurements has ended")
    result, error = pickle.loads(answer)
    if error:
        raise Died(error)
    return result


_running: Optional[subprocess.Popen] = None


def _server() -> subprocess.Popen:
    global _running
    if _running is None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        _running = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is the caller's, who then ends the server and its child
        )
        atexit.register(_stop)
    return _running


def _stop() -> None:
    """Ends the server and what it forked."""
    global _running
    if _running is not None:
        try:
            os.killpg(_running.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _running.wait()
        for pipe in (_running.stdin, _running.stdout):
            if pipe:
                pipe.close()
        _running = None


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(struct.pack(">Q", len(content)) + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Optional[bytes]:
    """The next message, or None where the other end is closed."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack(">Q", head)
    content = pipe.read(length)
    return content if len(content) == length else None


def _answer(question: bytes) -> Tuple[Any, Optional[str]]:
    """In the forked process: the result, or what went wrong."""
    try:
        module, name, arguments = pickle.loads(question)
        __import__(module)
        return getattr(sys.modules[module], name)(*arguments), None
    except Exception as error:
        traceback.print_exc()
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _in_a_fork(question: bytes) -> bytes:
    """In the server: the answer of a new process, or the signal that ended it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            _send(pipe, pickle.dumps(_answer(question)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = _receive(pipe)
    _, status = os.waitpid(pid, 0)
    if answer is not None:
        return answer
    ended = f"signal {status & 127}" if status & 127 else f"exit code {status >> 8}"
    return pickle.dumps((None, f"its process was ended by {ended}"))


def _serve() -> None:
    import benchmarks.formulations  # noqa: F401  what most measurements need, imported once

    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a measurement prints must not stand among the answers
    while (question := _receive(questions)) is not None:
        try:
            _send(answers, _in_a_fork(question))
        except BrokenPipeError:  # whoever asked was killed
            os._exit(0)


if __name__ == "__main__":
    _serve()
