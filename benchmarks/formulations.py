"""The loss of CARP in four ways that are measured against each other (loss.py), on random inputs of a given size.

fused         `carp_objective_func`, what training uses
materialised  the pseudocode of B.2 as it is written: every assignment of every view in memory at once
bare          its four matrix products and nothing else, each into a new tensor, as anyone would write them
chunked       the same four products in pieces that stay in the cache and memory that is used again: no code that has to
              find the gradients of all logits can need less

Shape suffixes are those of carp_plugin/losses/carp.py.
"""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import PeakMemory, in_turns, medians, memory_of
from carp_plugin.losses import carp
from carp_plugin.losses.carp import carp_objective_func

FORMS = ("fused", "materialised", "bare", "chunked")
_TINY = (8, 128, 16)  # N, K, B of a call that starts threads and loads kernels
_CHUNK_BYTES = 4 * 2**20  # of student logits, in the chunked products


class Case(NamedTuple):
    """A size of the loss: two views, float32."""

    images: int  # N
    prototypes: int  # K
    block: int  # B
    dim: int = 256  # D

    @property
    def name(self) -> str:
        """As results are filed."""
        return f"N={self.images} K={self.prototypes} B={self.block} D={self.dim}"

    @property
    def work(self) -> float:
        """N * K against N = 128, K = 65,536."""
        return self.images * self.prototypes / (128 * 65536)

    @property
    def gradient_bytes(self) -> int:
        """Of the gradients that every form returns: embeddings and prototypes."""
        return 4 * self.dim * (2 * self.images + self.prototypes)

    @property
    def materialised_bytes(self) -> int:
        """About what the materialised form holds at its peak: four tensors of all logits of both networks (4 N K)."""
        return 4 * 4 * (4 * self.images * self.prototypes)


class Inputs(NamedTuple):
    """Two views of student and teacher, and the prototypes of both."""

    student: List[Tensor]
    teacher: List[Tensor]
    C_KD: Tensor
    teacher_C_KD: Tensor
    permutation: Tensor


def inputs_of(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Random embeddings, unit prototypes and a partition; views of an image are alike, as in training."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    image = normal(case.images, case.dim)
    views = [(image + 0.5 * normal(case.images, case.dim)).to(device) for _ in range(4)]
    C_KD = F.normalize(normal(case.prototypes, case.dim)).to(device)
    teacher_C_KD = F.normalize(C_KD + 0.01 * normal(case.prototypes, case.dim).to(device))
    permutation = torch.randperm(case.prototypes, generator=generator).to(device)
    for tensor in (*views[:2], C_KD):
        tensor.requires_grad_()
    return Inputs(views[:2], views[2:], C_KD, teacher_C_KD, permutation)


# ---------------------------------------------------------------------------------- the four forms


def fused(inputs: Inputs, block: int) -> Tuple[Tensor, Sequence[Tensor]]:
    """The loss () and its gradients with respect to both views and the prototypes."""
    loss, _ = carp_objective_func(*inputs, block)
    return loss, torch.autograd.grad(loss, [*inputs.student, inputs.C_KD])


def materialised(inputs: Inputs, block: int) -> Tuple[Tensor, Sequence[Tensor]]:
    """The same by B.2: whole logits, softmax in every block, autograd. Symmetric pairs are averaged."""
    s_PNB = [_assignments(z_ND, inputs.C_KD, inputs.permutation, block) for z_ND in inputs.student]
    t_PNB = [
        _assignments(w_ND, inputs.teacher_C_KD, inputs.permutation, block)
        for w_ND in inputs.teacher
    ]
    consistency = (_consistency(s_PNB[0], t_PNB[1]) + _consistency(s_PNB[1], t_PNB[0])) / 2
    probs_PRB = torch.cat([*s_PNB, *t_PNB], dim=1)  # R = 4 N
    mean_PB = probs_PRB.mean(dim=1)
    entropy_gap = (log(block) + (mean_PB * mean_PB.log()).sum(dim=-1)).mean()
    loss = consistency + entropy_gap
    return loss, torch.autograd.grad(loss, [*inputs.student, inputs.C_KD])


def _assignments(h_ND: Tensor, C_KD: Tensor, permutation: Tensor, block: int) -> Tensor:
    """softmax(h C^T) within every block: (P, N, B)."""
    logits_NK = (h_ND @ C_KD.T)[:, permutation]
    logits_PNB = torch.stack(logits_NK.split(block, dim=1))
    return torch.softmax(logits_PNB, dim=-1)


def _consistency(s_PNB: Tensor, t_PNB: Tensor) -> Tensor:
    """L_c of section 3: the mean of -log <s, t>."""
    return -torch.einsum("knc,knc->kn", s_PNB, t_PNB).log().mean()


def bare(inputs: Inputs, block: int) -> Tuple[Tensor, Tensor]:
    """Logits of student and teacher, and the two products that bring a gradient of the logits back: (R, D), (K, D)."""
    with torch.no_grad():
        z_RD, w_RD = torch.cat(inputs.student), torch.cat(inputs.teacher)
        logits_RK = torch.mm(z_RD, inputs.C_KD.T)
        teacher_logits_RK = torch.mm(w_RD, inputs.teacher_C_KD.T)
        # The student's logits stand for their gradient: the arithmetic does not depend on the values.
        gradients = torch.mm(logits_RK, inputs.C_KD), torch.mm(logits_RK.T, z_RD)
        del teacher_logits_RK  # whoever computes the loss has both at once
        return gradients


def chunked(inputs: Inputs, block: int) -> Tuple[Tensor, Tensor]:
    """The same products in chunks of columns; only the gradients are new memory."""
    with torch.no_grad():
        z_RD, w_RD = torch.cat(inputs.student), torch.cat(inputs.teacher)
        rows, prototypes = z_RD.shape[0], inputs.C_KD.shape[0]
        columns = min(prototypes, max(1, _CHUNK_BYTES // (4 * rows)))
        student, teacher = z_RD.new_empty(2, rows * columns)
        grad_z_RD, grad_C_KD = torch.zeros_like(z_RD), torch.empty_like(inputs.C_KD)
        for first in range(0, prototypes, columns):
            here = slice(first, min(first + columns, prototypes))
            width = here.stop - here.start
            logits, teacher_logits = (
                memory[: rows * width].view(rows, width) for memory in (student, teacher)
            )
            C_chunk = inputs.C_KD[here]
            torch.mm(z_RD, C_chunk.T, out=logits)
            torch.mm(w_RD, inputs.teacher_C_KD[here].T, out=teacher_logits)
            grad_z_RD.addmm_(logits, C_chunk)
            torch.mm(logits.T, z_RD, out=grad_C_KD[here])
        return grad_z_RD, grad_C_KD


_CALLS: Dict[str, Callable[[Inputs, int], Any]] = {
    "fused": fused,
    "materialised": materialised,
    "bare": bare,
    "chunked": chunked,
}


# ------------------------------------------------------------------------------------ measurements


def fits(case: Case, device: torch.device) -> bool:
    """Whether the materialised form is expected to find its memory."""
    return case.materialised_bytes + 3 * case.gradient_bytes < 0.9 * memory_of(device)


def warm_up(device: torch.device) -> None:
    """Starts threads and loads kernels."""
    tiny = Case(*_TINY)
    for call in _CALLS.values():
        call(inputs_of(tiny, device), tiny.block)


def seconds(
    case: Case, forms: Sequence[str], device_name: str, budget: float, least: int = 2
) -> Dict[str, List[float]]:
    """Times of forward and backward in turns, in this process, in seconds.

    Args:
        case: the size.
        forms: of ``FORMS``.
        device_name: as torch takes it.
        budget: seconds that the turns may take all together; a turn is what all forms take once.
        least: turns that are taken whatever the budget; never more than 15.

    Returns:
        Dict[str, List[float]]: a list for each form, as many numbers in each as turns were taken.
    """
    device = torch.device(device_name)
    warm_up(device)
    inputs = inputs_of(case, device)
    calls = {form: partial(_CALLS[form], inputs, case.block) for form in forms}
    first = in_turns(calls, 1, device)
    turn = sum(values[0] for values in first.values())
    turns = int(min(15, max(least, budget // turn)))
    # A turn that leaves no room for more than the least is so long that its first touch of memory does not show.
    if budget // turn < least:
        rest = in_turns(calls, turns - 1, device)
        return {form: first[form] + rest[form] for form in forms}
    return in_turns(calls, turns, device)


def extra_bytes(case: Case, form: str, device_name: str) -> int:
    """Peak memory of one forward and backward beyond inputs and gradients; in a process of its own, please."""
    device = torch.device(device_name)
    warm_up(device)
    inputs = inputs_of(case, device)
    with PeakMemory(device) as peak:
        _CALLS[form](inputs, case.block)
    return max(0, peak.bytes - case.gradient_bytes)


def seconds_by_target(
    case: Case, targets: Sequence[int], device_name: str, turns: int
) -> Dict[str, float]:
    """Median seconds of the fused loss for every target of its chunks in bytes, and of the chunked products."""
    device = torch.device(device_name)
    warm_up(device)
    inputs = inputs_of(case, device)

    def with_target(target: Optional[int]) -> None:
        if target is None:
            chunked(inputs, case.block)
            return
        carp.CHUNK_BYTES_CPU = carp.CHUNK_BYTES_ACCELERATOR = target
        fused(inputs, case.block)

    before = carp.CHUNK_BYTES_CPU, carp.CHUNK_BYTES_ACCELERATOR
    calls = {str(t or "chunked"): partial(with_target, t) for t in (None, *targets)}
    try:
        in_turns(calls, 1, device)
        return medians(in_turns(calls, turns, device))
    finally:
        carp.CHUNK_BYTES_CPU, carp.CHUNK_BYTES_ACCELERATOR = before
