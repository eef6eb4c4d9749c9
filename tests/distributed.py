"""Run a function on several gloo ranks, one process each, and bring back what every rank returns.

A rank that raises, dies or hangs fails the caller: nothing counts as a pass because it did not answer.
:class:`Collectives` watches what the ranks send each other.
"""

import multiprocessing
import os
import pickle
import time
import traceback
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Callable, List, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent


class RankError(RuntimeError):
    """A rank raised or died; the message holds its traceback."""


class Collective(NamedTuple):
    """One call that sends tensors between ranks."""

    name: str  # of the operator: c10d's, such as "allreduce_", or a functional one's, such as "all_reduce"
    elements: int  # of the tensors handed over
    bytes: int


class Collectives(TorchDispatchMode):
    """While entered, notes in ``calls`` every collective of this process, whoever makes it and however.

    It watches torch's dispatcher, below `torch.distributed`, its functional twin and DistributedDataParallel's
    gradient buckets alike: all of them end there, in forward and in backward.
    """

    NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem")
    LOCAL = ("wait_tensor", "_wrap_tensor_autograd")  # operators of those that send nothing

    def __init__(self) -> None:
        super().__init__()
        self.calls: List[Collective] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace in self.NAMESPACES and name not in self.LOCAL:
            tensors = tree_leaves(args[0])
            elements = [tensor.numel() for tensor in tensors]
            size = [tensor.numel() * tensor.element_size() for tensor in tensors]
            self.calls.append(Collective(name, sum(elements), sum(size)))
        return func(*args, **(kwargs or {}))


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
    context = fork_server()
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


def fork_server() -> Any:
    """A context whose processes are forked from a server that has imported the heavy packages, once for all ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["carp_plugin.host", "lightning.pytorch"])
    path = os.environ.get("PYTHONPATH")
    try:  # the server knows of sys.path what the environment says
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    return context


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
