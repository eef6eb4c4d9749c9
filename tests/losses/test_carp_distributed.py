"""The loss on several gloo ranks with different data against one process on the concatenated batch.

What is averaged over ranks, as DistributedDataParallel does, must be the gradient of the one process:
a right value with a wrong gradient is the classic mistake of losses that look at the global batch.
"""

import math
import os
import time

import pytest
import torch
import torch.distributed as dist

from carp_plugin.losses import carp, carp_loss_func, carp_objective_func
from tests.distributed import RankError, run_on_ranks

VIEWS, IMAGES, DIM, K, B = 3, 4, 5, 24, 6
CHUNKS = (1, 3)
WEIGHTS = {"consistency": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (0.7, 1.9)}
FORMS = [
    (call, fused, name)
    for call in ("objective", "terms")
    for fused in (True, False)
    for name in WEIGHTS
]


def problem(world_size):
    """Embeddings of the global batch, (views, world_size * IMAGES, DIM); every rank takes its images."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape):
        return 2 * torch.randn(*shape, generator=g, dtype=torch.float64)

    images = world_size * IMAGES
    # Ranks differ in scale too, so that one rank's mean is far from the global one.
    scale = torch.arange(1, world_size + 1).repeat_interleave(IMAGES)[:, None] / world_size
    student, teacher = scale * normal(VIEWS, images, DIM), scale * normal(2, images, DIM)
    return student, teacher, normal(K, DIM), normal(K, DIM), torch.randperm(K, generator=g)


def evaluate(student, teacher, C, C_teacher, permutation, form):
    """Terms and gradients as a dict of tensors."""
    call, fused, name = form
    weights = WEIGHTS[name]
    student = student.clone().requires_grad_()
    C = C.clone().requires_grad_()
    args = (list(student), list(teacher), C, C_teacher, permutation, B)
    if call == "objective":
        loss, terms = carp_objective_func(
            *args, consistency_weight=weights[0], entropy_weight=weights[1], fused=fused
        )
    else:
        terms = carp_loss_func(*args, fused=fused)
        loss = weights[0] * terms.consistency + weights[1] * terms.entropy_gap
    loss.backward()
    result = {name: term.detach() for name, term in terms._asdict().items()}
    return {**result, "loss": loss.detach(), "grad_student": student.grad, "grad_C": C.grad}


def all_forms(rank, world_size):
    """What a rank finds for its images: {(form, blocks a chunk): (tensors, collectives)}."""
    student, teacher, *rest = problem(world_size)
    own = slice(rank * IMAGES, (rank + 1) * IMAGES)
    found = {}
    for blocks_per_chunk in CHUNKS:
        carp.CHUNK_BYTES_CPU = blocks_per_chunk * VIEWS * IMAGES * B * 8
        for form in FORMS:
            with dist_calls_noted() as calls:
                result = evaluate(student[:, own], teacher[:, own], *rest, form)
            found[form, blocks_per_chunk] = result, calls
    return found


class dist_calls_noted:
    """While entered, every collective of torch.distributed adds (name, bytes) to a list."""

    NAMES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_to_all", "barrier",
             "broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor", "gather", "scatter",
             "send", "recv", "all_gather_object", "broadcast_object_list")  # fmt: skip

    def __init__(self):
        self.calls, self.originals = [], {}

    def __enter__(self):
        for name in self.NAMES:
            self.originals[name] = getattr(dist, name)
            setattr(dist, name, self._noting(name))
        return self.calls

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(dist, name, original)

    def _noting(self, name):
        def call(*args, **kwargs):
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            self.calls.append((name, sum(t.numel() * t.element_size() for t in tensors)))
            return self.originals[name](*args, **kwargs)

        return call


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """(number of ranks, what each found)."""
    folder = tmp_path_factory.mktemp("ranks")
    return request.param, run_on_ranks(all_forms, request.param, folder, request.param)


@pytest.mark.parametrize("blocks_per_chunk", CHUNKS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]}-fused_{form[1]}-{form[2]}")
def test_mean_of_the_ranks_is_one_process_on_the_whole_batch(form, blocks_per_chunk, ranks):
    world_size, answers = ranks
    expected = evaluate(*problem(world_size), form)
    found = [answer[form, blocks_per_chunk][0] for answer in answers]
    for result in found:  # each rank holds the global entropy
        for name in ("entropy_gap", "mean_probs"):
            torch.testing.assert_close(result[name], expected[name], rtol=1e-12, atol=0)
    for name in ("consistency", "loss", "grad_C"):
        mean = torch.stack([result[name] for result in found]).mean(0)
        torch.testing.assert_close(mean, expected[name], rtol=1e-11, atol=1e-13)
    # A rank's embeddings are its own: their share in the averaged gradient is 1 / world_size.
    gathered = torch.cat([result["grad_student"] for result in found], dim=1) / world_size
    torch.testing.assert_close(gathered, expected["grad_student"], rtol=1e-11, atol=1e-13)


def test_ranks_see_different_data(ranks):
    """Else the test above could not tell a local mean from a global one."""
    found = [answer[FORMS[0], CHUNKS[0]][0] for answer in ranks[1]]
    assert len({round(result["consistency"].item(), 9) for result in found}) == len(found)
    assert not torch.allclose(found[0]["grad_C"], found[1]["grad_C"], rtol=0.1)


def test_only_the_mean_assignment_is_sent(ranks):
    """One all-reduce a chunk, K numbers in all, none in backward."""
    for answer in ranks[1]:
        for ((_, fused, _), blocks_per_chunk), (_, calls) in answer.items():
            assert {name for name, _ in calls} == {"all_reduce"}
            assert len(calls) == (math.ceil(K // B / blocks_per_chunk) if fused else 1)
            assert sum(size for _, size in calls) == K * 8


# --------------------------------------------------------------------- the helper that runs ranks


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
