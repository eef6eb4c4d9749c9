"""CARL's loss: its relation to CARP's, its value where it is known, its gradient."""

import math

import pytest
import torch

from carp_plugin.losses import carp_objective_func
from carp_plugin.losses.carl import carl_loss_func

N, D, K = 6, 5, 7


def made(views=2, seed=0, scale=2.0):
    """Embeddings of `views` views and prototypes, float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, D)] * views + [(K, D)]
    tensors = [torch.randn(*shape, generator=generator).double() * scale for shape in shapes]
    return [t.requires_grad_() for t in tensors[:views]], tensors[-1].requires_grad_()


def objective(views, prototypes, weight=1.0):
    terms = carl_loss_func(views, prototypes)
    return terms.consistency + weight * terms.entropy_gap


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_carp_of_one_block_whose_teacher_is_the_student(weight, fused):
    """The value is CARP's exactly; the gradient is twice CARP's, whose teacher has none."""
    views, C_KD = made()
    loss = objective(views, C_KD, weight)
    ours = torch.autograd.grad(loss, [*views, C_KD])
    theirs, _ = carp_objective_func(
        views,
        [view.detach() for view in views],
        C_KD,
        C_KD.detach(),
        torch.randperm(K),
        K,
        entropy_weight=weight,
        fused=fused,
    )
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-9)
    for own, other in zip(ours, torch.autograd.grad(theirs, [*views, C_KD])):
        assert torch.allclose(own, 2 * other, rtol=1e-9, atol=1e-12)


def test_equal_one_hot_assignments_over_all_prototypes_cost_nothing():
    views = [torch.eye(K) * 1e4] * 2
    assert objective(views, torch.eye(K), 3.0).item() == pytest.approx(0, abs=1e-6)


def test_uniform_assignments_cost_log_k_and_have_no_gap():
    terms = carl_loss_func([torch.zeros(N, D)] * 2, torch.randn(K, D))
    assert terms.consistency.item() == pytest.approx(math.log(K), rel=1e-6)
    assert terms.entropy_gap.item() == pytest.approx(0, abs=1e-6)


def test_one_prototype_for_all_costs_its_weight_times_log_k():
    views = [torch.eye(K)[:1].repeat(N, 1) * 1e4] * 2
    assert objective(views, torch.eye(K), 2.0).item() == pytest.approx(2 * math.log(K), rel=1e-6)


def test_neither_the_order_of_prototypes_nor_that_of_views_matters():
    views, C_KD = made()
    loss = objective(views, C_KD).item()
    assert objective(views[::-1], C_KD).item() == pytest.approx(loss, rel=1e-12)
    assert objective(views, C_KD[torch.randperm(K)]).item() == pytest.approx(loss, rel=1e-12)


def test_small_views_are_compared_with_large_ones_only():
    views, C_KD = made(views=4)
    s = [(view @ C_KD.T).softmax(dim=1) for view in views]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    expected = torch.stack([-(s[i] * s[j]).sum(1).log().mean() for i, j in pairs]).mean()
    terms = carl_loss_func(views, C_KD)
    assert terms.consistency.item() == pytest.approx(expected.item(), rel=1e-9)
    mean = torch.cat(s).mean(0)
    gap = math.log(K) + (mean * mean.log()).sum().item()
    assert terms.entropy_gap.item() == pytest.approx(gap, rel=1e-9)
    assert torch.allclose(terms.mean_probs, mean) and not terms.mean_probs.requires_grad


def test_gradient_in_float64():
    views, C_KD = made()
    assert torch.autograd.gradcheck(
        lambda *given: objective(given[:2], given[2], 0.7), (*views, C_KD)
    )


def test_large_logits_and_a_batch_of_one_are_finite():
    views, C_KD = made(scale=300.0)
    for some in ([view[:1] for view in views], views):
        loss = objective(some, C_KD)
        assert loss.isfinite() and all(
            g.isfinite().all() for g in torch.autograd.grad(loss, [*views, C_KD])
        )


@pytest.mark.parametrize(
    "views, prototypes, large, says",
    [
        ([(3, 4)], (5, 4), 1, "at least 2 views, received 1"),
        ([(3, 4), (2, 4)], (5, 4), 2, r"expected the shape of .*\(3, 4\), received \(2, 4\)"),
        ([(3, 4), (3, 5)], (5, 4), 2, r"expected shape \(N, 4\) .* received \(3, 5\)"),
        ([(0, 4), (0, 4)], (5, 4), 2, r"N >= 1, received \(0, 4\)"),
        ([(3, 4), (3, 4)], (5,), 2, r"prototypes: expected shape \(K, D\), received \(5,\)"),
        ([(3, 4), (3, 4)], (5, 4), 3, "between 1 and the 2 views, received 3"),
    ],
)
def test_what_does_not_fit_is_said(views, prototypes, large, says):
    with pytest.raises(ValueError, match=says):
        carl_loss_func([torch.zeros(*v) for v in views], torch.zeros(*prototypes), large)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"floating point type, received torch.int64"):
        carl_loss_func([torch.zeros(2, 3).long()] * 2, torch.zeros(4, 3))
