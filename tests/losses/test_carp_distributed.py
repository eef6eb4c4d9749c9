"""The loss on several gloo ranks with different data against one process on the concatenated batch.

What is averaged over ranks, as DistributedDataParallel does, must be the gradient of the one process:
a right value with a wrong gradient is the classic mistake of losses that look at the global batch.
"""

import math
import os
import time
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from carp_plugin.losses import carp, carp_loss_func, carp_objective_func
from tests.distributed import Collectives, RankError, run_on_ranks

DIM, K, B = 5, 24, 6
CHUNKS = (1, 3)  # blocks a chunk
WEIGHTS = {"consistency": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (0.7, 1.9)}
#: Largest relative deviation, in norm: nothing but the order of sums differs.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}
#: The entropy's own gradient is a difference of nearly equal numbers, which magnifies rounding.
CANCELLATION = {"entropy": 4}


class Form(NamedTuple):
    """One way to the loss."""

    call: str  # carp_objective_func or carp_loss_func
    fused: bool
    dtype: torch.dtype
    views: int
    images: int  # of a rank

    def __str__(self):
        path = "fused" if self.fused else "plain"
        return f"{self.call}-{path}-{str(self.dtype)[6:]}-{self.views}_views"


FORMS = [
    Form(call, fused, dtype, views, images)
    for call in ("carp_objective_func", "carp_loss_func")
    for fused in (True, False)
    for dtype in TOLERANCE
    for views, images in ((2, 5), (4, 3))  # two large views; with multi-crop
]
CASES = [(weights, blocks) for weights in WEIGHTS for blocks in CHUNKS]


def problem(form, world_size):
    """Embeddings of the global batch, (views, world_size * images, DIM); every rank takes its images."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape):
        return (2 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(form.dtype)

    images = world_size * form.images
    # Ranks differ in scale too, so that one rank's mean is far from the global one.
    scale = torch.arange(1, world_size + 1).repeat_interleave(form.images)[:, None] / world_size
    student = scale.to(form.dtype) * normal(form.views, images, DIM)
    teacher = scale.to(form.dtype) * normal(2, images, DIM)
    return student, teacher, normal(K, DIM), normal(K, DIM), torch.randperm(K, generator=g)


def evaluate(student, teacher, C, C_teacher, permutation, form, weights):
    """Terms and gradients as a dict of tensors."""
    student = student.clone().requires_grad_()
    C = C.clone().requires_grad_()
    args = (list(student), list(teacher), C, C_teacher, permutation, B)
    if form.call == "carp_objective_func":
        loss, terms = carp_objective_func(
            *args, consistency_weight=weights[0], entropy_weight=weights[1], fused=form.fused
        )
    else:
        terms = carp_loss_func(*args, fused=form.fused)
        loss = weights[0] * terms.consistency + weights[1] * terms.entropy_gap
    loss.backward()
    result = {name: term.detach() for name, term in terms._asdict().items()}
    return {**result, "loss": loss.detach(), "grad_student": student.grad, "grad_C": C.grad}


def all_forms(rank, world_size):
    """What a rank finds for its images: {(form, weights, blocks a chunk): (tensors, collectives)}."""
    found = {"every kind": every_kind_of_collective(world_size)}
    for form in FORMS:
        student, teacher, *rest = problem(form, world_size)
        own = slice(rank * form.images, (rank + 1) * form.images)
        for name, blocks in CASES:
            carp._blocks_per_chunk = lambda layout, z_RD, blocks=blocks: blocks
            with Collectives() as watched:
                result = evaluate(student[:, own], teacher[:, own], *rest, form, WEIGHTS[name])
            found[form, name, blocks] = result, watched.calls
    return found


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """(number of ranks, what each found)."""
    folder = tmp_path_factory.mktemp("ranks")
    return request.param, run_on_ranks(all_forms, request.param, folder, request.param)


def assert_near(found, expected, tolerance, what):
    """Relative deviation in norm; a gradient that is zero must be zero."""
    deviation, size = (found - expected).norm().item(), expected.norm().item()
    assert deviation <= tolerance * size, f"{what}: {deviation / max(size, 1e-300):.2e} relative"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_mean_of_the_ranks_is_one_process_on_the_whole_batch(form, ranks):
    world_size, answers = ranks
    for name, blocks in CASES:
        tolerance = TOLERANCE[form.dtype] * CANCELLATION.get(name, 1)
        expected = evaluate(*problem(form, world_size), form, WEIGHTS[name])
        found = [answer[form, name, blocks][0] for answer in answers]
        case = f"{name}, {blocks} blocks a chunk"
        for result in found:  # each rank holds the global entropy
            for term in ("entropy_gap", "mean_probs"):
                assert_near(result[term], expected[term], tolerance, f"{term}, {case}")
        for term in ("consistency", "loss", "grad_C"):
            mean = torch.stack([result[term] for result in found]).mean(0)
            assert_near(mean, expected[term], tolerance, f"{term}, {case}")
        # A rank's embeddings are its own: their share in the averaged gradient is 1 / world_size.
        gathered = torch.cat([result["grad_student"] for result in found], dim=1) / world_size
        assert_near(gathered, expected["grad_student"], tolerance, f"grad_student, {case}")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_ranks_see_different_data(form, ranks):
    """Else the test above could not tell a local mean from a global one."""
    found = [answer[form, "both", CHUNKS[0]][0] for answer in ranks[1]]
    assert len({round(result["consistency"].item(), 5) for result in found}) == len(found)
    assert not torch.allclose(found[0]["grad_C"], found[1]["grad_C"], rtol=0.1)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_only_the_mean_assignment_is_sent(form, ranks):
    """All-reduces of K numbers in all, a chunk each, whatever the views and images; none in backward."""
    size = torch.empty((), dtype=form.dtype).element_size()
    for answer in ranks[1]:
        for name, blocks in CASES:
            calls = answer[form, name, blocks][1]
            assert {call.name for call in calls} == {"allreduce_"}
            assert len(calls) == (math.ceil(K // B / blocks) if form.fused else 1)
            assert sum(call.elements for call in calls) == K
            assert sum(call.bytes for call in calls) == K * size


# --------------------------------------------------------------------- the helpers that run and watch ranks


def every_kind_of_collective(world_size):
    """(name, elements) of what is noted of collectives made in each of the ways there are."""
    four, ddp = torch.ones(4), torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
    with Collectives() as watched:
        dist.all_reduce(four)
        dist.broadcast(four, 0)
        dist.all_gather([torch.empty(4) for _ in range(world_size)], four)
        functional.wait_tensor(functional.all_reduce(four, "sum", dist.group.WORLD))
        ddp(torch.ones(1, 3)).sum().backward()
    return [call[:2] for call in watched.calls]


def test_the_watch_sees_every_kind_of_collective(ranks):
    world_size, answers = ranks
    noted = [("allreduce_", 4), ("broadcast_", 4), ("allgather_", 4 * world_size)]
    for answer in answers:  # the last one is the average of a linear layer's gradients
        assert answer["every kind"] == [*noted, ("all_reduce", 4), ("allreduce_", 3 * 2 + 2)]


def fail_on_the_last(rank):
    if rank == 1:
        raise KeyError("of rank one")
    dist.barrier()


def die(rank):
    os._exit(0)


def hang(rank):
    time.sleep(600)


@pytest.mark.parametrize(
    ("function", "world_size", "timeout", "error", "message"),
    [
        (fail_on_the_last, 2, 100, RankError, "rank 1 raised(.|\n)*KeyError: 'of rank one'"),
        (die, 1, 100, RankError, "rank 0 ended without a result"),
        (hang, 1, 1, TimeoutError, r"no answer within 1 s from ranks \[0\]"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_a_rank_that_fails_fails_the_test(function, world_size, timeout, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run_on_ranks(function, world_size, tmp_path, timeout=timeout)
