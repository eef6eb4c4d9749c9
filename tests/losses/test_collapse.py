"""The values of collapse against the loss itself and against optimisation, and what is and is not a collapse."""

import math

import pytest
import torch

from carp_plugin.losses import carp_objective_func
from carp_plugin.losses.collapse import Terms, collapse_values, diagnose


def loss_of_constant(logits_K, B, c, e, permutation):
    """What the loss makes of an output that is `logits_K` for every image: prototypes are the axes of the space."""
    K = len(logits_K)
    z = logits_K.expand(3, K)
    loss, terms = carp_objective_func(
        [z, z],
        [z, z],
        torch.eye(K, dtype=z.dtype),
        torch.eye(K, dtype=z.dtype),
        permutation,
        B,
        consistency_weight=c,
        entropy_weight=e,
        fused=False,
    )
    return loss, terms


def test_the_values_that_the_design_names():
    """B = 512 with weights of 1: a constant output is below log B, 4.40 over drawn blocks and 3.63 in one block."""
    values = collapse_values(512)
    assert values.uniform == Terms(math.log(512), 0.0, math.log(512))
    assert values.one_hot == Terms(0.0, math.log(512), math.log(512))
    assert values.constant.loss == pytest.approx(4.40, abs=0.01)
    assert collapse_values(512, num_prototypes=512).constant.loss == pytest.approx(
        3.63012, abs=1e-5
    )


@pytest.mark.parametrize(
    "B, c, e", [(2, 1, 1), (8, 1, 1), (8, 2, 1), (8, 1, 4), (32, 1, 2), (64, 2, 1)]
)
def test_in_one_block_no_output_is_cheaper(B, c, e):
    """Free optimisation of all B logits, by the loss itself, from many starts."""

    def optimised(seed):
        start = torch.randn(B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        logits = (start * (0.1 + seed % 4)).requires_grad_()
        solver = torch.optim.LBFGS(
            [logits],
            max_iter=300,
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure():
            solver.zero_grad()
            loss, _ = loss_of_constant(logits, B, c, e, torch.arange(B))
            loss.backward()
            return loss

        solver.step(closure)
        return closure().item()

    value = collapse_values(B, c, e, num_prototypes=B).constant.loss
    assert value == pytest.approx(min(map(optimised, range(12))), abs=1e-6)


@pytest.mark.parametrize("B, K, c, e", [(8, 64, 1, 1), (16, 64, 1, 2)])
def test_over_drawn_blocks_hardly_any_output_is_cheaper(B, K, c, e):
    """Free optimisation of all K logits over freshly drawn partitions gains about 1 % on two values."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(K, generator=generator).requires_grad_()
    solver = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, 400)

    def loss(partitions):
        order = torch.rand(partitions, K, generator=generator).argsort(dim=1)
        log_p = logits[order].view(partitions, -1, B).log_softmax(-1)
        consistency = -torch.logsumexp(2 * log_p, -1)
        gap = math.log(B) + (log_p.exp() * log_p).sum(-1)
        return (c * consistency + e * gap).mean()

    for _ in range(400):
        solver.zero_grad()
        loss(8).backward()
        solver.step()
        schedule.step()
    with torch.no_grad():
        found = loss(2000).item()
    value = collapse_values(B, c, e, num_prototypes=K).constant.loss
    assert 0.98 * value < found < 1.02 * value


def test_the_cheapest_output_has_these_terms_in_the_loss_itself():
    B, (consistency, gap, loss) = 16, collapse_values(16, num_prototypes=16).constant
    # one entry at t: t = (2 c / e) (p_high - p_low) / <p, p> is solved by iteration
    t = torch.tensor(3.0, dtype=torch.float64)
    for _ in range(200):
        p = torch.cat([t[None], torch.zeros(B - 1, dtype=torch.float64)]).softmax(0)
        t = 2 * (p[0] - p[1]) / p.square().sum()
    made, terms = loss_of_constant(p.log(), B, 1, 1, torch.arange(B))
    assert made.item() == pytest.approx(loss, abs=1e-9)
    assert terms.consistency.item() == pytest.approx(consistency, abs=1e-6)
    assert terms.entropy_gap.item() == pytest.approx(gap, abs=1e-6)


def test_limits_of_the_weights():
    values = collapse_values(64, 0.0, 1.0)
    assert values.constant == values.uniform and values.constant.loss == 0
    values = collapse_values(64, 1.0, 0.0)
    assert values.constant == values.one_hot and values.constant.loss == 0
    assert collapse_values(64, 1.0, 100.0).constant.loss == pytest.approx(math.log(64))
    assert collapse_values(1).constant.loss == 0


def test_twice_the_weights_is_twice_the_loss_of_the_same_output():
    one, two = collapse_values(32).constant, collapse_values(32, 2, 2).constant
    assert two.loss == pytest.approx(2 * one.loss) and two[:2] == pytest.approx(one[:2], abs=1e-5)


@pytest.mark.parametrize(
    "arguments", [(0,), (8, -1.0), (8, 1.0, -1.0), (8, 1.0, 1.0, 12), (8, 1, 1, 4)]
)
def test_what_does_not_fit_is_said(arguments):
    with pytest.raises(ValueError, match="expected"):
        collapse_values(*arguments)


@pytest.mark.parametrize(
    "consistency, gap, information, kind",
    [
        (math.log(64), 0.0, 0.0, "uniform"),
        (0.0, math.log(64), 0.0, "one-hot"),
        (1.46, 1.30, 0.001, "constant"),
        (1.60, 1.20, 0.15, "constant"),  # some information left, but what is sharp is shared
        (1.60, 1.20, 1.50, None),  # as far, but images are told apart
        (4.12, 0.02, 0.05, None),  # an untrained network
        (2.80, 0.15, 1.60, None),  # a healthy one
        (0.30, 0.60, 3.20, None),  # sharp
        (float("nan"), float("nan"), float("nan"), None),  # another callback's business
    ],
)
def test_verdicts(consistency, gap, information, kind):
    fits = {"partition_size": 64, "images": 128, "values": collapse_values(64)}
    assert diagnose(consistency, gap, information, **fits) == kind


def test_fewer_images_than_prototypes_are_no_collapse_when_each_has_its_own():
    """One block of 16,384 for 64 images: the gap cannot be below log B - log images."""
    B, images = 16384, 64
    fits = {"partition_size": B, "images": images, "values": collapse_values(B, num_prototypes=B)}
    gap = math.log(B / images)
    assert diagnose(0.0, gap, math.log(images), **fits) is None
    # half of them share one prototype, or all but two: the second is a collapse
    assert diagnose(0.0, gap + math.log(2), math.log(images / 2), **fits) is None
    assert diagnose(0.0, gap + math.log(images / 2), math.log(2), **fits) == "one-hot"


def test_a_block_of_one_prototype_has_no_verdict():
    fits = {"partition_size": 1, "images": 8, "values": collapse_values(1)}
    assert diagnose(0.0, 0.0, 0.0, **fits) is None
