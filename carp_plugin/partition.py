"""Which prototype sits in which block at step t (CARP, section 4).

A partition of K prototypes is a permutation of their indices: cut into runs of `partition_size`, it gives
the blocks. The loss takes the permutation, so that this file knows nothing of blocks.
"""

from typing import Callable, Dict, Optional, Union

import torch
from torch import Tensor

Device = Optional[Union[str, int, torch.device]]

_MASK = 2**64 - 1


def random_partition(seed: int, step: int, num_prototypes: int, device: Device = None) -> Tensor:
    """A fresh, uniformly random permutation of the prototypes for every step (B.2, `multinomial`).

    A pure function of (seed, step, num_prototypes): the same on every rank, on every device and after a
    resume. Neither reads nor moves the global random state.

    Args:
        seed: of the run; any int. The same on every rank.
        step: number of the training step, >= 0.
        num_prototypes: K >= 1.
        device: where the result is put; the CPU if None.

    Returns:
        (K,) int64.

    Raises:
        ValueError: step or num_prototypes is out of range.
    """
    if step < 0:
        raise ValueError(f"step: expected an int >= 0, received {step}")
    _check_num_prototypes(num_prototypes)
    # Always drawn on the CPU: the generators of other devices give other numbers for the same seed.
    mixed = _mix(seed, step)
    permutation = torch.randperm(num_prototypes, generator=torch.Generator().manual_seed(mixed))
    # The generator keeps the low 32 bits of its seed. The others relabel the prototypes, or else two
    # steps of one long run would likely share their partition.
    permutation.add_((mixed >> 32) % num_prototypes).remainder_(num_prototypes)
    if device is None or torch.device(device).type == "cpu":
        return permutation
    if torch.device(device).type == "cuda":
        permutation = permutation.pin_memory()  # only from pinned memory is a copy asynchronous
    return permutation.to(device, non_blocking=True)


def constant_partition(num_prototypes: int, device: Device = None) -> Tensor:
    """The identity, (K,) int64: the same blocks at every step ('constant' of table 7)."""
    _check_num_prototypes(num_prototypes)
    return torch.arange(num_prototypes, device=device)


def partition(
    kind: str, seed: int, step: int, num_prototypes: int, device: Device = None
) -> Tensor:
    """The partition of a step by the name the config gives it, one of `PARTITIONS`: (K,) int64.

    Raises:
        ValueError: an unknown kind, or what `random_partition` and `constant_partition` raise.
    """
    if kind not in PARTITIONS:
        raise ValueError(f"partition: expected one of {sorted(PARTITIONS)}, received {kind!r}")
    return PARTITIONS[kind](seed, step, num_prototypes, device)


PARTITIONS: Dict[str, Callable[[int, int, int, Device], Tensor]] = {
    "random": random_partition,
    "constant": lambda seed, step, num_prototypes, device: constant_partition(
        num_prototypes, device
    ),
}


def _check_num_prototypes(num_prototypes: int) -> None:
    if num_prototypes < 1:
        raise ValueError(f"num_prototypes: expected an int >= 1, received {num_prototypes}")


def _mix(seed: int, step: int) -> int:
    """A 64-bit hash of the pair. The seed is mixed before the step is added, so that (1, 0) and (0, 1),
    or any other pairs of equal sum, do not meet."""
    return _splitmix64((_splitmix64(int(seed) & _MASK) + int(step)) & _MASK)


def _splitmix64(x: int) -> int:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit numbers in which
    every input bit reaches every output bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
