"""Run a function on several gloo ranks, one process each, and bring back what every rank returns.

A rank that raises, dies or hangs fails the caller: nothing counts as a pass because it did not answer.
"""

import multiprocessing
import pickle
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Callable, List

import torch
import torch.distributed as dist


class RankError(RuntimeError):
    """A rank raised or died; the message holds its traceback."""


def run_on_ranks(
    function: Callable[..., Any], world_size: int, folder: Path, *args: Any, timeout: float = 120.0
) -> List[Any]:
    """[function(rank, *args) of every rank], called within an initialised gloo process group.

    Args:
        function: of a module that a fresh process can import; its result must pickle.
        folder: an existing folder for the file by which the ranks find each other (no port to collide).
        timeout: seconds for everything, start of the processes included.

    Raises:
        RankError: a rank raised or ended without a result.
        TimeoutError: not all ranks answered in time.
    """
    context = multiprocessing.get_context("spawn")
    store = folder / f"store-{world_size}-{time.monotonic_ns()}"
    receivers, processes = [], []
    try:
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank,
                args=(sender, function, rank, world_size, str(store), timeout, args),
                daemon=True,
            )
            process.start()
            sender.close()  # the child has the only end now: if it dies, the pipe says so
            receivers.append(receiver)
            processes.append(process)
        results = _collect(receivers, time.monotonic() + timeout, timeout)
        for process in processes:  # leave the group in peace
            process.join(timeout=10)
        return results
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        for receiver in receivers:
            receiver.close()


def _collect(receivers: list, deadline: float, timeout: float) -> List[Any]:
    results, open_ranks = {}, dict(enumerate(receivers))
    while open_ranks:
        ready = wait(list(open_ranks.values()), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"no answer within {timeout} s from ranks {sorted(open_ranks)}")
        for rank in [rank for rank, receiver in open_ranks.items() if receiver in ready]:
            try:
                succeeded, payload = pickle.loads(open_ranks.pop(rank).recv_bytes())
            except EOFError:
                raise RankError(f"rank {rank} ended without a result") from None
            if not succeeded:
                raise RankError(f"rank {rank} raised\n{payload}")
            results[rank] = payload
    return [results[rank] for rank in sorted(results)]


def _rank(sender, function, rank, world_size, store, timeout, args) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        message = pickle.dumps((True, function(rank, *args)))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    # The answer first: leaving the group may wait for a rank that hangs.
    sender.send_bytes(message)
    sender.close()
    if dist.is_initialized():
        dist.destroy_process_group()
