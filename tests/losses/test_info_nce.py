"""InfoNCE with kept negatives: the host's MoCo, its value at random embeddings, its gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.losses.info_nce import info_nce_func
from carp_plugin.losses.infomin import infomin_loss_func


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def hosts(query, key, queue_KD, temperature):
    """MoCo's loss of the installed host."""
    try:
        from solo.losses.mocov2plus import mocov2plus_loss_func as loss
    except ImportError:  # 1.0.2
        from solo.losses.moco import moco_loss_func as loss
    return loss(query, key, queue_KD.T, temperature)


def test_it_is_the_hosts_moco():
    q, k, queue = unit(5, 8).requires_grad_(), unit(5, 8, seed=1), unit(11, 8, seed=2)
    ours, theirs = info_nce_func(q, k, queue, 0.2), hosts(q, k, queue, 0.2)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (own,), (other,) = torch.autograd.grad(ours, [q]), torch.autograd.grad(theirs, [q])
    assert torch.allclose(own, other, rtol=1e-10)


def test_infomin_with_beta_0_is_moco_and_with_1_the_patches_are():
    q, jig, k, queue = (unit(n, 8, seed=n) for n in (5, 5, 5, 11))
    jig = unit(5, 8, seed=77)
    moco, patches = hosts(q, k, queue, 0.15).item(), hosts(jig, k, queue, 0.15).item()
    for beta in (0.0, 0.3, 1.0):
        loss = infomin_loss_func(q, jig, k, queue, 0.15, beta)
        assert loss.item() == pytest.approx((1 - beta) * moco + beta * patches, rel=1e-12)


def test_negatives_of_each_image_are_its_own():
    q, k, own = unit(3, 8), unit(3, 8, seed=1), unit(3, 7, 8, seed=2)
    alone = [info_nce_func(q[i : i + 1], k[i : i + 1], own[i], 0.1) for i in range(3)]
    assert info_nce_func(q, k, own, 0.1).item() == pytest.approx(
        torch.stack(alone).mean().item(), rel=1e-12
    )
    shared = own[:1].expand(3, -1, -1)
    assert torch.allclose(info_nce_func(q, k, shared, 0.1), info_nce_func(q, k, own[0], 0.1))


@pytest.mark.parametrize(
    "K, D, T, expected", [(65536, 128, 0.15, 11.26), (32000, 128, 0.07, 11.17)]
)
def test_it_starts_where_the_facts_say(K, D, T, expected):
    loss = info_nce_func(
        unit(64, D).float(), unit(64, D, seed=1).float(), unit(K, D, seed=2).float(), T
    )
    assert math.log(K + 1) + 1 / (2 * D * T * T) == pytest.approx(expected, abs=0.01)
    assert loss.item() == pytest.approx(expected, abs=0.35)  # the spread of 64 positives


def test_gradient_reaches_queries_alone():
    q, k, queue = (t.requires_grad_() for t in (unit(3, 4), unit(3, 4, seed=1), unit(5, 4, seed=2)))
    jig = unit(3, 4, seed=3).requires_grad_()
    infomin_loss_func(q, jig, k, queue).backward()
    assert k.grad is None and queue.grad is None and jig.grad.any() and q.grad.any()
    assert torch.autograd.gradcheck(
        lambda a, b: infomin_loss_func(a, b, k.detach(), queue.detach()), (q, jig)
    )


def test_a_batch_of_one_is_one_of_a_batch():
    q, k, queue = unit(1, 4), unit(1, 4, seed=1), unit(5, 4, seed=2)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.1
    assert info_nce_func(q, k, queue).item() == pytest.approx(-logits.log_softmax(1)[0, 0].item())


@pytest.mark.parametrize(
    "shapes, temperature, says",
    [
        (((3, 4), (2, 4), (5, 4)), 0.1, r"positive: expected the shape of query, \(3, 4\)"),
        (
            ((3, 4), (3, 4), (5, 3)),
            0.1,
            r"negatives: expected shape \(K, 4\) or \(3, K, 4\), received \(5, 3\)",
        ),
        (((3, 4), (3, 4), (2, 5, 4)), 0.1, r"received \(2, 5, 4\)"),
        (((0, 4), (0, 4), (5, 4)), 0.1, r"query: .* received \(0, 4\)"),
        (((3, 4), (3, 4), (5, 4)), -1.0, "above 0, received -1.0"),
    ],
)
def test_what_does_not_fit_is_said(shapes, temperature, says):
    with pytest.raises(ValueError, match=says):
        info_nce_func(*(torch.zeros(*shape) for shape in shapes), temperature)


def test_a_weight_beyond_1_and_whole_numbers_are_refused():
    q, queue = unit(2, 4), unit(3, 4)
    with pytest.raises(ValueError, match="beta: expected a number from 0 to 1, received 1.5"):
        infomin_loss_func(q, q, q, queue, beta=1.5)
    with pytest.raises(ValueError, match="query: .*torch.int64"):
        info_nce_func(torch.ones(2, 4).long(), q, queue)
