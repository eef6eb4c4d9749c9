"""The loss of CARP (arXiv 2310.12692): consistent assignment of views over random partitions.

Functions of tensors only. `carp_objective_func` is what training uses, `carp_loss_func` gives the two
terms apart, and `fused=False` in either is the paper written out, the text to read first
(`_plain_terms`). Everything else here is the same mathematics without an N x K tensor.

Shape suffixes: V student views, N images of this rank, D embedding size, K prototypes, B prototypes in
a block (`partition_size`, N_B in the paper), P blocks (K / B), C blocks in a chunk, R rows of views
(V * N for the student, 2 * N for the teacher).

In a block, with student logits a and teacher logits b (LSE is log-sum-exp):

    consistency  -log <softmax a, softmax b> = LSE(a) + LSE(b) - LSE(a + b)
                 gradient in a: softmax(a) - softmax(a + b)
    entropy gap  log B - H(mean_probs)
                 gradient in a: p * (g - <p, g>), p = softmax(a), g = log(B mean_probs) / rows

A block's mean_probs depends on that block's logits alone, so one walk over chunks of blocks finds the
logits, both terms and the gradients, each logit computed once.

Across ranks the convention is that of DistributedDataParallel, which averages gradients: the mean over
ranks of what each rank returns is what one process would return for the concatenated batch. Only
mean_probs is reduced, K floats a step. Every rank must hold the same number of images, for the mean to be
right and because the chunks, hence the all-reduces, follow from the shapes (DistributedSampler sees to it).

One file, because upstream has one file a loss.
"""

import contextlib
import functools
import math
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

# Bytes of all that is held for a chunk of blocks (`_blocks_per_chunk`). On a CPU they should stay in the
# cache; an accelerator wants few, large kernels and few all-reduces.
CHUNK_BYTES_CPU = 16 * 2**20
CHUNK_BYTES_ACCELERATOR = 384 * 2**20

# Precision of the inputs of the fused path's matrix products, where the computation is in float32.
PRODUCTS = ("float32", "tf32")

Weights = Tuple[Union[float, Tensor], Union[float, Tensor]]


class CARPLossTerms(NamedTuple):
    """The two terms of the loss and what the entropy was taken of."""

    consistency: Tensor  # (), mean over pairs of views i != j, images and blocks of -log <s_i, t_j>
    entropy_gap: Tensor  # (), mean over blocks of log B - H(mean_probs), between 0 and log B (nats)
    mean_probs: Tensor  # (P, B), mean assignment over the views of the global batch; detached


class _Layout(NamedTuple):
    views: int
    images: int
    blocks: int
    block_size: int
    products: str = "float32"  # of PRODUCTS

    @property
    def rows(self) -> int:
        """Views of student and teacher that a mean of this rank is taken over."""
        return (self.views + 2) * self.images

    @property
    def pairs(self) -> int:
        """Pairs (i, j) of a student and a teacher view with i != j; teacher views are 0 and 1."""
        return 2 * self.views - 2


def partners(view: int) -> Tuple[int, ...]:
    """The teacher views that student view `view` is compared with: those of another crop."""
    return tuple(j for j in (0, 1) if j != view)


def carp_loss_func(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    permutation: Tensor,
    partition_size: int,
    *,
    fused: bool = True,
    products: str = "float32",
) -> CARPLossTerms:
    """The two terms of CARP's loss (eq. 3 and B.2), separately differentiable.

    The fused path computes no gradient in the forward pass and walks over the chunks a second time in
    backward: when the weights of the terms are known beforehand, `carp_objective_func` is cheaper.

    Args:
        student: V >= 2 tensors (N, D), one a view, not normalised; views 0 and 1 are the teacher's.
        teacher: exactly 2 tensors (N, D). They receive no gradient.
        student_prototypes: (K, D).
        teacher_prototypes: (K, D). They receive no gradient; may be `student_prototypes` itself.
        permutation: (K,) int64, a permutation of the prototypes; each run of B entries is a block. The
            same on every rank. Its content is not checked: that would make an accelerator wait.
        partition_size: B, the number of prototypes in a block; divides K.
        fused: False computes the same from materialised assignments.
        products: "tf32" rounds the inputs of the fused path's matrix products to 10 bits of mantissa and keeps
            sums in float32: the tensor cores of a card, and on a CPU an imitation that is no faster. "float32"
            rounds nothing, whatever the process has chosen for other products. Of float64 nothing is rounded.

    Returns:
        CARPLossTerms, in float32 or, if an input is, float64. `consistency` is of this rank's images;
        `entropy_gap` and `mean_probs` are of the views of all ranks.

    Raises:
        ValueError: a shape, a data type or a number that does not fit.
    """
    layout = _check(
        student, teacher, student_prototypes, teacher_prototypes, permutation, partition_size
    )._replace(products=_checked(products, fused))
    inputs = _prepare(student, teacher, student_prototypes, teacher_prototypes, permutation)
    if not fused:
        return _plain_terms(*inputs, layout)
    if _wants_gradient(inputs):
        return CARPLossTerms(*_FusedTerms.apply(*inputs, layout))
    return _fused_pass(*inputs, layout).terms


def carp_objective_func(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    permutation: Tensor,
    partition_size: int,
    *,
    consistency_weight: float = 1.0,
    entropy_weight: float = 1.0,
    fused: bool = True,
    products: str = "float32",
) -> Tuple[Tensor, CARPLossTerms]:
    """consistency_weight * consistency + entropy_weight * entropy_gap, the scalar to minimise.

    Eq. (3) and B.2 add the two symmetric pairs, which is a consistency_weight of 2; the default of 1
    averages them. As the weights are known, the fused path finds the gradients during the forward pass:
    four matrix products a step, and backward only scales.

    Args:
        consistency_weight: of the consistency term.
        entropy_weight: of the entropy gap, 1 in CARP.
        student, teacher, student_prototypes, teacher_prototypes, permutation, partition_size, fused,
            products: see `carp_loss_func`.

    Returns:
        the loss (), differentiable once, and its CARPLossTerms, detached.

    Raises:
        ValueError: a shape, a data type or a number that does not fit.
    """
    layout = _check(
        student, teacher, student_prototypes, teacher_prototypes, permutation, partition_size
    )._replace(products=_checked(products, fused))
    inputs = _prepare(student, teacher, student_prototypes, teacher_prototypes, permutation)
    weights = (consistency_weight, entropy_weight)
    if fused and _wants_gradient(inputs):
        loss, *terms = _FusedObjective.apply(*inputs, layout, weights)
        return loss, CARPLossTerms(*terms)
    terms = _plain_terms(*inputs, layout) if not fused else _fused_pass(*inputs, layout).terms
    return _weighted(terms, weights), CARPLossTerms(*(term.detach() for term in terms))


# --------------------------------------------------------------------------- the paper, written out


def _plain_terms(
    z_RD: Tensor, C_KD: Tensor, w_RD: Tensor, teacher_C_KD: Tensor, order_K: Tensor, layout: _Layout
) -> CARPLossTerms:
    """Sections 3 and 4 with every assignment of every view held in memory."""
    with _full_precision(z_RD):
        log_s_VNPB = _log_assignments(z_RD, C_KD, order_K, layout)
        log_t_VNPB = _log_assignments(w_RD, teacher_C_KD, order_K, layout)
        consistency = torch.stack(
            [
                _consistency(log_s_VNPB[i], log_t_VNPB[j])
                for i in range(layout.views)
                for j in partners(i)
            ]
        ).mean()
        # Eq. (1): one mean over the assignments of all views, student's and teacher's.
        assignments = torch.cat([log_s_VNPB, log_t_VNPB]).exp()
        local_PB = assignments.flatten(0, 1).mean(dim=0)
        # The value is that of the global batch. The gradient is that of this rank's rows within a mean
        # of this rank's rows: the average over ranks then divides by their number.
        global_PB = _all_reduce_sum(local_PB.detach().clone()) / _world_size()
        mean_PB = local_PB + (global_PB - local_PB).detach()
        entropy_gap = _entropy_gap(mean_PB).mean()
    return CARPLossTerms(consistency, entropy_gap, global_PB)


def _log_assignments(h_RD: Tensor, C_KD: Tensor, order_K: Tensor, layout: _Layout) -> Tensor:
    """log q(h, B_j) of section 4, q(h, C) = softmax(h C^T), for every block: (views, N, P, B)."""
    logits_RK = h_RD @ C_KD[order_K].to(h_RD.dtype).T
    return logits_RK.view(-1, layout.images, layout.blocks, layout.block_size).log_softmax(dim=-1)


def _consistency(log_s_NPB: Tensor, log_t_NPB: Tensor) -> Tensor:
    """L_c(s, t) = -log <s, t> of section 3, mean over images and blocks; in logs, so never log 0."""
    return -torch.logsumexp(log_s_NPB + log_t_NPB, dim=-1).mean()


def _entropy_gap(mean_PB: Tensor) -> Tensor:
    """log B - H(mean) of every block (`kl_div` of B.2): (P,). An unused prototype counts 0, not NaN."""
    return (mean_PB * _log_over_uniform(mean_PB)).sum(dim=-1)


def _log_over_uniform(mean_PB: Tensor) -> Tensor:
    """log(B mean): log(mean) but for a constant, which the gap's gradient in a logit does not see.

    Near uniform, where training begins, the gap is far smaller than log B and H, and so is its gradient than
    log(mean): without the constant, neither is a difference of large numbers.
    """
    return mean_PB.clamp_min(torch.finfo(mean_PB.dtype).tiny).mul(mean_PB.shape[-1]).log()


# --------------------------------------------------------------------------------- the fused path


class _Pass(NamedTuple):
    terms: CARPLossTerms
    grad_z_RD: Optional[Tensor]
    grad_C_KD: Optional[Tensor]


def _fused_pass(
    z_RD: Tensor,
    C_KD: Tensor,
    w_RD: Tensor,
    teacher_C_KD: Tensor,
    order_K: Tensor,
    layout: _Layout,
    *,
    weights: Optional[Weights] = None,
    wanted: Sequence[bool] = (False, False),
    known_mean_PB: Optional[Tensor] = None,
) -> _Pass:
    """One walk over chunks of blocks: the terms and, of their weighted sum, the wanted gradients.

    Args:
        weights: of consistency and entropy gap in the gradients; numbers or 0-dim tensors.
        wanted: whether the gradients with respect to z_RD and C_KD are wanted.
        known_mean_PB: mean_probs if known from an earlier pass; otherwise computed and all-reduced.
    """
    with torch.no_grad(), _full_precision(z_RD), _products_on_cards(layout.products):
        size, per_chunk = layout.block_size, _blocks_per_chunk(layout, z_RD)
        known = known_mean_PB is not None
        mean_PB = z_RD.new_empty(layout.blocks, size) if known_mean_PB is None else known_mean_PB
        consistency, entropy_gap = z_RD.new_zeros(()), z_RD.new_zeros(())
        grad_z_RD = torch.zeros_like(z_RD) if wanted[0] else None
        grad_C_KD = torch.empty_like(C_KD, dtype=z_RD.dtype) if wanted[1] else None
        # Row r of student views 0 and 1 is compared with row r of the teacher's views 1 and 0.
        w_RD = torch.cat([w_RD[layout.images :], w_RD[: layout.images]])
        space = _Workspace(z_RD)
        rounded = _rounding(layout.products, z_RD)
        z_RD, w_RD = rounded(z_RD), rounded(w_RD)
        for first in range(0, layout.blocks, per_chunk):
            chunk = slice(first, min(first + per_chunk, layout.blocks))
            index = order_K[chunk.start * size : chunk.stop * size]
            C_chunk = rounded(space.rows("student rows", C_KD, index))
            teacher_C_chunk = rounded(space.rows("teacher rows", teacher_C_KD, index))
            student = space.assignments("student", z_RD, C_chunk, size)
            teacher = space.assignments("teacher", w_RD, teacher_C_chunk, size)
            if not known:
                total_CB = student.probs_RCB.sum(dim=0) + teacher.probs_RCB.sum(dim=0)
                rows = _world_size() * layout.rows
                torch.div(_all_reduce_sum(total_CB), rows, out=mean_PB[chunk])
            entropy_gap += _entropy_gap(mean_PB[chunk]).sum()
            consistency -= _log_overlap_and_gradient(
                student, teacher, mean_PB[chunk], layout, weights, space
            )
            grad_logits = rounded(student.logits_RCB.flatten(1))
            if grad_z_RD is not None:
                grad_z_RD.addmm_(grad_logits, C_chunk)
            if grad_C_KD is not None:
                # A prototype is in exactly one block, so every row is written exactly once.
                grad_rows = space.get("gradient rows", *C_chunk.shape)
                grad_C_KD[index] = torch.mm(grad_logits.T, z_RD, out=grad_rows)
        consistency /= layout.pairs * layout.images * layout.blocks
        terms = CARPLossTerms(consistency, entropy_gap / layout.blocks, mean_PB)
    return _Pass(terms, grad_z_RD, grad_C_KD)


class _Assignments(NamedTuple):
    logits_RCB: Tensor
    probs_RCB: Tensor

    def of(self, rows: slice) -> "_Assignments":
        return _Assignments(self.logits_RCB[rows], self.probs_RCB[rows])


class _Workspace:
    """The memory of one chunk, used again for the next: fresh pages cost as much as the arithmetic."""

    def __init__(self, like: Tensor):
        self._like = like
        self._buffers: Dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor with undefined content; the same memory for the same name."""
        count = math.prod(shape)
        if name not in self._buffers:  # the first chunk is the largest
            self._buffers[name] = self._like.new_empty(count)
        return self._buffers[name][:count].view(shape)

    def rows(self, name: str, C_KD: Tensor, index: Tensor) -> Tensor:
        """The prototypes `index` in the type of the computation."""
        if C_KD.dtype != self._like.dtype:
            return C_KD.index_select(0, index).to(self._like.dtype)
        return torch.index_select(C_KD, 0, index, out=self.get(name, index.shape[0], C_KD.shape[1]))

    def assignments(self, name: str, h_RD: Tensor, C_chunk: Tensor, size: int) -> _Assignments:
        """q(h, B_j) of section 4 for the blocks of the chunk, and the logits."""
        rows, columns = h_RD.shape[0], C_chunk.shape[0]
        logits_RCB = self.get(name + " logits", rows, columns // size, size)
        torch.mm(h_RD, C_chunk.T, out=logits_RCB.view(rows, columns))
        probs_RCB = self.get(name + " probs", *logits_RCB.shape)
        return _Assignments(logits_RCB, torch.softmax(logits_RCB, dim=-1, out=probs_RCB))


def _log_overlap_and_gradient(
    student: _Assignments,
    teacher: _Assignments,
    mean_CB: Tensor,
    layout: _Layout,
    weights: Optional[Weights],
    space: _Workspace,
) -> Tensor:
    """The sum of log <s_i, t_j> over pairs, images and the blocks of the chunk: ().

    With weights, the gradient of the weighted terms is written over the student logits. N in the names here is the
    rows of a group (`_groups`).
    """
    log_overlap = mean_CB.new_zeros(())
    if weights is not None:
        pull = weights[0] / (layout.pairs * layout.images * layout.blocks)
        slope_CB = _log_over_uniform(mean_CB) * (weights[1] / (layout.rows * layout.blocks))
    for rows, others in _groups(layout):
        own = student.of(rows)
        joint = [
            _overlap(own, teacher.of(other), space, f"joint {j}") for j, other in enumerate(others)
        ]
        log_overlap += sum(log_NC.sum() for _, _, log_NC in joint)
        if weights is None:
            continue
        # s * (g - <s, g>) + pull * sum_j (s - softmax(a_i + b_j)), in place of the logits a_i.
        grad_NCB = torch.mul(own.probs_RCB, slope_CB, out=own.logits_RCB)
        level_NC1 = pull * len(joint) - grad_NCB.sum(dim=-1, keepdim=True)
        grad_NCB.addcmul_(own.probs_RCB, level_NC1)
        for joint_NCB, total_NC, _ in joint:
            grad_NCB.addcmul_(joint_NCB, (-pull / total_NC).unsqueeze(-1))
    return log_overlap


def _groups(layout: _Layout) -> Iterator[Tuple[slice, Tuple[slice, ...]]]:
    """Rows of the student, with the rows of the teacher (its view 1 first) that they are compared with.

    Each large view has one partner, so both are one group: half the calls. A small view has two.
    """
    N = layout.images
    yield slice(0, 2 * N), (slice(0, 2 * N),)
    for i in range(2, layout.views):
        yield slice(i * N, (i + 1) * N), (slice(0, N), slice(N, 2 * N))


def _overlap(
    s: _Assignments, t: _Assignments, space: _Workspace, name: str
) -> Tuple[Tensor, Tensor, Tensor]:
    """(joint_NCB, total_NC, log_NC): softmax(a + b) = joint / total, and log <s, t>.

    The product s * t needs no exponential, but where s and t hardly overlap it underflows. It is taken
    where its totals can be looked at and show that what was lost is below rounding; otherwise a + b.
    """
    joint_NCB = space.get(name, *s.probs_RCB.shape)
    if _may_look(joint_NCB):
        torch.mul(s.probs_RCB, t.probs_RCB, out=joint_NCB)
        total_NC = joint_NCB.sum(dim=-1)
        # Of s, t and the product less than `tiny` an entry is lost: about (B + 2) * tiny a block.
        info, size = torch.finfo(total_NC.dtype), joint_NCB.shape[-1]
        if total_NC.min() > (size + 2) * (info.tiny / info.eps):
            return joint_NCB, total_NC, total_NC.log()
    # Maxima are taken off first, so that large logits do not cancel; 1 / sum(exp(a - max a)) = max s.
    for logits in (s.logits_RCB, t.logits_RCB):
        logits.sub_(logits.amax(dim=-1, keepdim=True))
    torch.add(s.logits_RCB, t.logits_RCB, out=joint_NCB)
    peak_NC1 = joint_NCB.amax(dim=-1, keepdim=True)
    joint_NCB.sub_(peak_NC1).exp_()
    total_NC = joint_NCB.sum(dim=-1)
    scale_NC = s.probs_RCB.amax(dim=-1).log() + t.probs_RCB.amax(dim=-1).log()
    return joint_NCB, total_NC, total_NC.log() + peak_NC1.squeeze(-1) + scale_NC


class _FusedTerms(Function):
    """Both terms; backward repeats the pass with the incoming gradients as weights."""

    @staticmethod
    def forward(ctx, z_RD, C_KD, w_RD, teacher_C_KD, order_K, layout):
        terms = _fused_pass(z_RD, C_KD, w_RD, teacher_C_KD, order_K, layout).terms
        ctx.save_for_backward(z_RD, C_KD, w_RD, teacher_C_KD, order_K, terms.mean_probs)
        ctx.layout = layout
        ctx.mark_non_differentiable(terms.mean_probs)
        return tuple(terms)

    @staticmethod
    def backward(ctx, grad_consistency, grad_entropy_gap, _):
        z_RD, C_KD, w_RD, teacher_C_KD, order_K, mean_PB = ctx.saved_tensors
        _, grad_z_RD, grad_C_KD = _fused_pass(
            z_RD,
            C_KD,
            w_RD,
            teacher_C_KD,
            order_K,
            ctx.layout,
            weights=(grad_consistency.detach(), grad_entropy_gap.detach()),
            wanted=ctx.needs_input_grad[:2],
            known_mean_PB=mean_PB,
        )
        gradients = _last_derivatives(grad_z_RD, grad_C_KD, C_KD.dtype)
        return (*gradients, None, None, None, None)


class _FusedObjective(Function):
    """The weighted sum; its gradients are found in forward, backward scales them."""

    @staticmethod
    def forward(ctx, z_RD, C_KD, w_RD, teacher_C_KD, order_K, layout, weights):
        terms, grad_z_RD, grad_C_KD = _fused_pass(
            z_RD,
            C_KD,
            w_RD,
            teacher_C_KD,
            order_K,
            layout,
            weights=weights,
            wanted=ctx.needs_input_grad[:2],
        )
        ctx.save_for_backward(grad_z_RD, grad_C_KD)
        ctx.prototype_dtype = C_KD.dtype
        ctx.mark_non_differentiable(*terms)
        return (_weighted(terms, weights), *terms)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        # The gradients wait in full precision: a loss scale must reach them before they become half.
        grad_z_RD, grad_C_KD = ctx.saved_tensors
        # Plain `loss.backward()` scales by 1: spare the copies.
        if not (_may_look(grad_loss) and grad_loss == 1):
            scale = grad_loss.detach()
            grad_z_RD = None if grad_z_RD is None else grad_z_RD * scale
            grad_C_KD = None if grad_C_KD is None else grad_C_KD * scale
        gradients = _last_derivatives(grad_z_RD, grad_C_KD, ctx.prototype_dtype)
        return (*gradients, None, None, None, None, None)


def _last_derivatives(
    grad_z_RD: Optional[Tensor], grad_C_KD: Optional[Tensor], prototype_dtype: torch.dtype
) -> Iterator[Optional[Tensor]]:
    """What backward returns: in the inputs' types and, under create_graph, refusing to go further."""
    if grad_C_KD is not None:
        grad_C_KD = grad_C_KD.to(prototype_dtype)
    for gradient in (grad_z_RD, grad_C_KD):
        if gradient is not None and torch.is_grad_enabled():
            gradient = _NoSecondDerivative.apply(gradient.detach().requires_grad_())
        yield gradient


class _NoSecondDerivative(Function):
    """The identity. `once_differentiable` would let a gradient penalty pass in silence, as a constant."""

    @staticmethod
    def forward(ctx, gradient):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError("the fused CARP loss has no second derivative; fused=False has")


# ---------------------------------------------------------------------------------------- helpers


def _weighted(terms: CARPLossTerms, weights: Weights) -> Tensor:
    return weights[0] * terms.consistency + weights[1] * terms.entropy_gap


def _may_look(tensor: Tensor) -> bool:
    """Whether a branch on a value is free; an accelerator would have to finish its queue first."""
    return tensor.device.type == "cpu"


def _blocks_per_chunk(layout: _Layout, z_RD: Tensor) -> int:
    """C, the blocks of a chunk: as many as the memory target has room for, at least one, at most P.

    A prototype of a chunk takes a logit and a probability in each of the V + 2 streams of N images, the products
    of `_groups` (2 N, and N more for small views), and three rows of D: the student's, the teacher's, the gradient.
    So the pass needs the target, whatever N * K is, until one block alone is larger: B = 65,536 at N = 512
    takes 1.5 GB. Blocks are not split, since a softmax needs its whole row.
    """
    products = 2 if layout.views == 2 else 3
    per_prototype = layout.images * (2 * (layout.views + 2) + products) + 3 * z_RD.shape[1]
    target = CHUNK_BYTES_CPU if z_RD.device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
    fitting = target // (per_prototype * layout.block_size * z_RD.element_size())
    return min(max(1, fitting), layout.blocks)


def _prepare(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    permutation: Tensor,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Views stacked in the data type of the computation, the teacher cut off from the graph."""
    tensors = (*student, *teacher, student_prototypes, teacher_prototypes)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    z_RD = torch.cat([view.to(dtype) for view in student])
    w_RD = torch.cat([view.detach().to(dtype) for view in teacher])
    return z_RD, student_prototypes, w_RD, teacher_prototypes.detach(), permutation


def _wants_gradient(inputs: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and (inputs[0].requires_grad or inputs[1].requires_grad)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Logits overflow in float16 and a softmax over bfloat16 logits is coarse: no autocast inside."""
    return torch.autocast(tensor.device.type, enabled=False)


@contextlib.contextmanager
def _products_on_cards(products: str) -> Iterator[None]:
    """TF32 on CUDA where it was asked for, else full float32; what the process had chosen stands again after."""
    matmul = torch.backends.cuda.matmul
    tf32 = products == "tf32"
    # The name of torch 2.9; before, a switch.
    name: str = "fp32_precision"
    value: Union[str, bool] = "tf32" if tf32 else "ieee"
    if not hasattr(matmul, name):
        name, value = "allow_tf32", tf32
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def _rounding(products: str, like: Tensor) -> Callable[[Tensor], Tensor]:
    """What is done to the inputs of a product: a card rounds by itself, a CPU has no TF32 and imitates it."""
    if products == "tf32" and like.device.type == "cpu" and like.dtype == torch.float32:
        return _tf32
    return lambda tensor: tensor


def _tf32(tensor: Tensor) -> Tensor:
    """Float32 rounded to the nearest number of 10 bits of mantissa; infinities stay, large NaNs too."""
    bits = tensor.contiguous().view(torch.int32)
    finite = bits & 0x7F800000 != 0x7F800000
    return torch.where(finite, (bits + 0x1000) & ~0x1FFF, bits).view(torch.float32)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_reduce_sum(tensor: Tensor) -> Tensor:
    if _world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _checked(products: str, fused: bool) -> str:
    if products not in PRODUCTS:
        raise ValueError(f"products: expected one of {list(PRODUCTS)}, received {products!r}")
    if products != "float32" and not fused:
        raise ValueError(f"products: {products!r} is for fused=True, received fused=False")
    return products


def _check(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    permutation: Tensor,
    partition_size: int,
) -> _Layout:
    """The layout, or a ValueError. Looks at shapes and types only, never at values."""
    if len(student) < 2:
        raise ValueError(f"student: expected at least 2 views, received {len(student)}")
    if len(teacher) != 2:
        raise ValueError(f"teacher: expected exactly 2 views, received {len(teacher)}")
    first = student[0]
    if first.ndim != 2 or first.shape[0] < 1:
        raise ValueError(
            f"student[0]: expected shape (N, D) with N >= 1, received {tuple(first.shape)}"
        )
    views = [(f"student[{i}]", view) for i, view in enumerate(student)]
    views += [(f"teacher[{j}]", view) for j, view in enumerate(teacher)]
    for name, view in views:
        if view.shape != first.shape:
            raise ValueError(
                f"{name}: expected the shape of student[0], {tuple(first.shape)}, received"
                f" {tuple(view.shape)}"
            )
    prototypes = [
        ("student_prototypes", student_prototypes),
        ("teacher_prototypes", teacher_prototypes),
    ]
    for name, tensor in prototypes:
        if tensor.ndim != 2 or tensor.shape[1] != first.shape[1]:
            raise ValueError(
                f"{name}: expected shape (K, {first.shape[1]}), received {tuple(tensor.shape)}"
            )
    K = student_prototypes.shape[0]
    if teacher_prototypes.shape[0] != K:
        raise ValueError(
            f"teacher_prototypes: expected {K} rows like student_prototypes, received"
            f" {teacher_prototypes.shape[0]}"
        )
    for name, tensor in views + prototypes:
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name}: expected a real floating point type, received {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{name}: expected on {first.device} like student[0], received on {tensor.device}"
            )
    blocks = check_partition(permutation, partition_size, student_prototypes)
    return _Layout(len(student), first.shape[0], blocks, partition_size)


def check_partition(permutation: Tensor, partition_size: int, prototypes: Tensor) -> int:
    """The number of blocks, or a ValueError when permutation or partition_size do not fit (K, D)."""
    K = prototypes.shape[0]
    if isinstance(partition_size, bool) or not isinstance(partition_size, int):
        raise ValueError(f"partition_size: expected an int, received {partition_size!r}")
    if partition_size < 1 or K < 1 or K % partition_size:
        raise ValueError(
            f"partition_size: expected a positive divisor of K = {K}, received {partition_size}"
        )
    if permutation.shape != (K,) or permutation.dtype != torch.int64:
        raise ValueError(
            f"permutation: expected shape ({K},) and type torch.int64, received"
            f" {tuple(permutation.shape)} and {permutation.dtype}"
        )
    if permutation.device != prototypes.device:
        raise ValueError(
            f"permutation: expected on {prototypes.device} like the prototypes, received on"
            f" {permutation.device}"
        )
    return K // partition_size
