"""SeLa v2: its plan against dense Sinkhorn, the host's and the assignment problem; its loss against the host's."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from carp_plugin.losses import selav2
from carp_plugin.losses.selav2 import hard_labels, selav2_loss_func, sinkhorn_plan, soft_labels
from tests.distributed import Collectives, run_on_ranks
from tests.helpers import of_host


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(
        dtype
    )


def problem(n=60, K=6, D=5, dtype=torch.float64):
    """Embeddings that lean towards one prototype."""
    return F.normalize(unit(n, D) + unit(1, D, seed=1), dim=1).to(dtype), unit(
        K, D, seed=2, dtype=dtype
    )


def dense(kernel, iterations=4000):
    """diag(u) kernel diag(v) with rows of 1 / n and columns of 1 / K, all of it in memory."""
    n, K = kernel.shape
    u, v = torch.ones(n, dtype=kernel.dtype), torch.ones(K, dtype=kernel.dtype)
    for _ in range(iterations):
        u = 1 / n / (kernel @ v)
        v = 1 / K / (kernel.T @ u)
    return u[:, None] * kernel * v


def converged(z, C, epsilon):
    return sinkhorn_plan(z, C, epsilon, max_iterations=4000, tolerance=1e-13)


def labels_of(z, C, epsilon, plan):
    return hard_labels(z, C, epsilon, plan.log_v_K, torch.arange(len(C)))


@pytest.mark.parametrize("epsilon", [0.5, 0.05])
def test_the_plan_is_that_of_both_parametrisations(epsilon):
    """exp(z.c / eps), and softmax(z.c / T)^(T / eps): a factor of each row is all that differs."""
    z, C = problem()
    plan = converged(z, C, epsilon)
    found = soft_labels(z, C, epsilon, plan.log_v_K) / len(z)
    assert (found - dense((z @ C.T / epsilon).exp())).abs().max() < 1e-13
    softmax = (z @ C.T / 0.1).softmax(dim=1) ** (0.1 / epsilon)
    assert (found - dense(softmax)).abs().max() < 1e-13
    assert found.sum(dim=0).mul(6).sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_three_iterations_on_one_batch_are_the_hosts(dtype, near):
    z, C = problem(dtype=dtype)
    expected = of_host("swav", "SinkhornKnopp")(3, 0.05, 1)(z @ C.T)
    plan = sinkhorn_plan(z, C, 0.05, max_iterations=3, tolerance=0)
    found = soft_labels(z, C, 0.05, plan.log_v_K)
    assert plan.iterations == 3 and (found - expected).abs().max() < near
    assert plan.error == pytest.approx(
        float((expected.mean(dim=0) * 6 - 1).abs().max()), rel=max(near, 1e-5)
    )


def test_the_iteration_ends_at_the_tolerance():
    z, C = problem()
    errors = [sinkhorn_plan(z, C, 0.05, tolerance=t).error for t in (0.1, 0.01, 0.001)]
    assert all(error <= t for error, t in zip(errors, (0.1, 0.01, 0.001)))
    assert sinkhorn_plan(z, C, 0.05, max_iterations=1, tolerance=0.001).error > 0.001


def test_clusters_are_equal_as_epsilon_vanishes_and_those_of_the_argmax_are_not():
    z, C = problem()
    plain = (z @ C.T).argmax(dim=1).bincount(minlength=6)
    assert plain.max() > 15
    plan = sinkhorn_plan(z, C, 0.004, max_iterations=5000, tolerance=1e-3)
    assert labels_of(z, C, 0.004, plan).bincount(minlength=6).tolist() == [10] * 6


def test_as_many_prototypes_as_images_are_an_assignment_problem():
    z, C = unit(12, 5), unit(12, 5, seed=1)
    plan = sinkhorn_plan(z, C, 0.001, max_iterations=50_000, tolerance=1e-3)
    _, columns = linear_sum_assignment((z @ C.T).numpy(), maximize=True)
    assert labels_of(z, C, 0.001, plan).tolist() == columns.tolist()


def test_small_epsilons_do_not_overflow_in_float32():
    """exp(1 / 0.004) is above what float32 holds."""
    z, C = problem(dtype=torch.float32)
    plan = sinkhorn_plan(z, C, 0.004, max_iterations=3000)
    assert plan.log_v_K.isfinite().all() and plan.error <= 0.01
    wide = sinkhorn_plan(z.double(), C.double(), 0.004, max_iterations=3000)
    assert torch.equal(labels_of(z, C, 0.004, plan), labels_of(z.double(), C.double(), 0.004, wide))


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_the_plan_is_never_held_whole(monkeypatch):
    z, C = problem(n=500, K=40)
    order = torch.randperm(40)
    whole = sinkhorn_plan(z, C, 0.05)
    labels = hard_labels(z, C, 0.05, whole.log_v_K, order)
    monkeypatch.setattr(selav2, "CHUNK_BYTES", 40 * 8 * 4 * 7)  # rows of 7 images
    with Largest() as watched:
        plan = sinkhorn_plan(z, C, 0.05)
        assert torch.equal(hard_labels(z, C, 0.05, plan.log_v_K, order), labels)
    assert watched.elements <= z.numel() < 500 * 40
    assert torch.allclose(plan.log_v_K, whole.log_v_K, rtol=1e-12)


def test_images_that_are_all_the_same_are_dealt_out_in_turn():
    """A plain argmax would give one label to all of them, and the clusters would be equal no more."""
    for dtype in (torch.float32, torch.float64):
        z, C = unit(1, 5, dtype=dtype).expand(60, 5), unit(6, 5, seed=1, dtype=dtype)
        plan = sinkhorn_plan(z, C, 0.05)
        found = soft_labels(z, C, 0.05, plan.log_v_K)
        assert torch.allclose(found, torch.full_like(found, 1 / 6), atol=1e-5)
        plain = found.argmax(dim=1).bincount(minlength=6)
        assert plain.min() == 0 and plain.max() > 20  # which, rounding decides
        order = torch.randperm(6)
        labels = hard_labels(z, C, 0.05, plan.log_v_K, order)
        assert labels.bincount(minlength=6).tolist() == [10] * 6
        half = hard_labels(z[30:], C, 0.05, plan.log_v_K, order, torch.arange(30, 60))
        assert torch.equal(half, labels[30:])


# ------------------------------------------------------------------------------ ranks


SHARES = (61, 1)  # uneven ones, and a rank without an image


def shares(rank, world_size):
    found = {}
    for n in SHARES:
        z, C = problem(n)
        with Collectives() as watched:
            plan = sinkhorn_plan(z[rank::world_size], C, 0.05, tolerance=1e-6)
        found[n] = plan, [call.elements for call in watched.calls]
    return found


def test_ranks_find_the_plan_of_one_process_and_send_a_number_a_prototype(tmp_path):
    for found in run_on_ranks(shares, 2, tmp_path, 2):
        for n, (plan, sent) in found.items():
            z, C = problem(n)
            whole = sinkhorn_plan(z, C, 0.05, tolerance=1e-6)
            assert plan.iterations == whole.iterations
            assert torch.allclose(plan.log_v_K, whole.log_v_K, rtol=1e-9, atol=1e-12)
            assert sent == [1, 6, 6] + [6] * plan.iterations


# ------------------------------------------------------------------------------ the loss


def test_hard_labels_give_the_hosts_loss_of_deep_cluster():
    cosines = [torch.stack([unit(7, 4, seed=v + 10 * h) for v in range(3)]) for h in range(2)]
    labels = torch.randint(4, (2, 7))
    expected = of_host("deepclusterv2", "deepclusterv2_loss_func")(
        torch.stack(cosines), labels, 0.1
    )
    found = selav2_loss_func(cosines, list(labels), 0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    hot = [F.one_hot(some, 4) for some in labels]
    assert selav2_loss_func(cosines, hot, 0.1).item() == pytest.approx(found.item(), rel=1e-12)


def test_heads_may_have_other_numbers_of_prototypes_and_labels_are_soft_too():
    cosines = [unit(2, 3, 4), unit(2, 3, 6, seed=1)]
    soft = [torch.rand(3, K, dtype=torch.float64).softmax(dim=1) for K in (4, 6)]
    expected = [
        -(y * (scores / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()
        for scores, y in zip(cosines, soft)
    ]
    assert selav2_loss_func(cosines, soft, 0.1).item() == pytest.approx(
        float(sum(expected) / 2), rel=1e-12
    )
    cosines = [scores.requires_grad_() for scores in cosines]
    assert torch.autograd.gradcheck(lambda *c: selav2_loss_func(c, soft, 0.1), cosines)


def test_random_embeddings_begin_near_log_k():
    """8.006 for 3,000 prototypes; staying there is collapse."""
    z, C = unit(256, 128, dtype=torch.float32), unit(3000, 128, seed=1, dtype=torch.float32)
    loss = selav2_loss_func([(z @ C.T)[None]], [torch.arange(256)], 0.1)
    # the softmax of random cosines is no uniform one: 1 / (2 D T^2) more
    assert loss.item() == pytest.approx(math.log(3000) + 1 / (2 * 128 * 0.01), abs=0.15)


def test_a_batch_of_one_and_half_precision():
    cosines = unit(1, 1, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = selav2_loss_func([cosines], [torch.tensor([2])])
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: selav2_loss_func([], []), "received 0 and 0"),
        (lambda: selav2_loss_func([unit(2, 3, 4)], [torch.zeros(2).long()]), r"received \(2, 3, 4"),
        (lambda: selav2_loss_func([unit(2, 3, 4)], [torch.zeros(3).long()], 0), "received 0"),
        (lambda: sinkhorn_plan(unit(3, 4), unit(2, 5), 0.05), r"received \(3, 4\) and \(2, 5\)"),
        (lambda: sinkhorn_plan(unit(3, 4), unit(2, 4), 0), "received 0"),
        (lambda: sinkhorn_plan(unit(3, 4), unit(2, 4), 1, max_iterations=0), "received 0"),
        (lambda: hard_labels(unit(3, 4), unit(2, 4), 1, unit(2), torch.arange(3)), r"\(3,\)"),
    ],
)
def test_what_does_not_fit_is_said(call, says):
    with pytest.raises(ValueError, match=says):
        call()
