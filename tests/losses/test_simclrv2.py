"""SimCLR v2's loss: twice the host's SimCLR, its value at random embeddings, its gradient."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.losses.simclrv2 import simclrv2_loss_func


def made(N=6, D=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_() for _ in "ab"
    ]


def hosts(z1, z2, temperature):
    """SimCLR of the installed host: of two views in 1.0.2, of embeddings and their images' numbers in the current."""
    from solo.losses.simclr import simclr_loss_func

    if "indexes" in inspect.signature(simclr_loss_func).parameters:
        indexes = torch.arange(len(z1)).repeat(2)
        return simclr_loss_func(torch.cat([z1, z2]), indexes, temperature)
    return simclr_loss_func(z1, z2, temperature)


def written_out(z1, z2, temperature):
    """Anchor by anchor."""
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(len(x)):
            positive = (x[i] @ y[i] / temperature).exp()
            others = sum(
                (x[i] @ y[j] / temperature).exp()
                + ((x[i] @ x[j] / temperature).exp() if j != i else 0)
                for j in range(len(x))
            )
            total = total - (positive / others).log() / len(x)
    return total


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_is_twice_the_hosts(temperature):
    views = made()
    ours, theirs = simclrv2_loss_func(*views, temperature), hosts(*views, temperature)
    assert ours.item() == pytest.approx(2 * theirs.item(), rel=1e-9)
    pairs = zip(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views))
    assert all(torch.allclose(own, 2 * other, rtol=1e-7, atol=1e-12) for own, other in pairs)


def test_it_is_the_sum_written_out():
    views = made(4)
    expected = written_out(*views, 0.2).item()
    assert simclrv2_loss_func(*views, 0.2).item() == pytest.approx(expected, rel=1e-9)


def test_it_starts_where_it_should():
    """About log(2N - 1) + 1 / (2 D T^2) for each of its two means."""
    N, D, T = 256, 128, 0.2
    loss = simclrv2_loss_func(*made(N, D), T).item()
    assert loss == pytest.approx(2 * (math.log(2 * N - 1) + 1 / (2 * D * T * T)), rel=0.02)


def test_gradient_in_float64():
    assert torch.autograd.gradcheck(lambda a, b: simclrv2_loss_func(a, b, 0.3), made(3, 4))


def test_a_batch_of_one_has_nothing_to_tell_apart():
    views = made(1)
    loss = simclrv2_loss_func(*views)
    assert loss.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(loss, views))


def test_half_precision_is_computed_in_full():
    views = [view.detach().half() for view in made(64, 16)]
    loss = simclrv2_loss_func(*views, 0.01)
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize(
    "one, other, temperature, says",
    [
        ((3, 4), (2, 4), 0.1, r"z2: expected the shape of z1, \(3, 4\), received \(2, 4\)"),
        ((3,), (3,), 0.1, r"z1: expected shape \(N, D\) with N >= 1, received \(3,\)"),
        ((0, 4), (0, 4), 0.1, r"received \(0, 4\)"),
        ((3, 4), (3, 4), 0.0, "above 0, received 0.0"),
        ((3, 4), (3, 4), math.nan, "above 0, received nan"),
    ],
)
def test_what_does_not_fit_is_said(one, other, temperature, says):
    with pytest.raises(ValueError, match=says):
        simclrv2_loss_func(torch.zeros(*one), torch.zeros(*other), temperature)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"z1: .*received torch.int64"):
        simclrv2_loss_func(torch.zeros(2, 3).long(), torch.zeros(2, 3))
