"""The loss of PCL against the host's MoCo, closed forms and the formulae written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.losses.info_nce import info_nce_func
from carp_plugin.losses.pclv2 import (
    ALPHA,
    Negatives,
    concentration_func,
    negatives_of,
    prototype_loss_func,
)
from tests.helpers import of_host

T = 0.2


def instance_loss_func(query, key, queue, temperature):
    """InfoNCE with a queue of one key a column, as the host keeps it."""
    return info_nce_func(query, key, queue.T, temperature)


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(
        dtype
    )


def none_drawn():
    """No negatives."""
    return Negatives(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_prototypes_it_is_the_hosts_moco(dtype):
    query, key, queue = unit(6, 8, dtype=dtype), unit(6, 8, seed=1, dtype=dtype), unit(20, 8).T
    expected = of_host("mocov2plus", "mocov2plus_loss_func", "moco_loss_func")
    found = instance_loss_func(query, key, queue.to(dtype), T)
    assert torch.equal(found, expected(query, key, queue.to(dtype), T))


def test_instances_begin_at_the_value_of_random_vectors():
    """log(r + 1) + 1 / (2 D T^2): 9.80 at r = 16,384, D = 128."""
    query, key, queue = (unit(n, 128, seed=n, dtype=torch.float32) for n in (512, 511, 16384))
    loss = instance_loss_func(query, query.roll(1, 0) * 0 + key[[0]], queue.T, T)
    expected = math.log(16385) + 1 / (2 * 128 * T**2)
    assert expected == pytest.approx(9.80, abs=0.005)
    assert loss.item() == pytest.approx(expected, abs=0.1)


def test_all_prototypes_as_negatives_are_a_softmax_over_all():
    K, N = 12, 4
    query, centroids = unit(N, 8), unit(K, 8, seed=1)
    phi = torch.rand(K, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1
    positives = torch.tensor([7, 0, 3, 11])
    negatives = negatives_of(positives, torch.randperm(K), K - N)
    assert negatives.kept_J.sum() == K - N
    found = prototype_loss_func(
        query, centroids, phi, positives, torch.arange(len(query)), negatives
    )
    closed = -(query @ centroids.T / phi).log_softmax(dim=1)[range(N), positives].mean()
    assert found.item() == pytest.approx(closed.item(), rel=1e-12)


def test_names_of_clusters_do_not_matter():
    K = 10
    query, centroids = unit(5, 8), unit(K, 8, seed=1)
    phi = torch.linspace(0.1, 0.4, K, dtype=torch.float64)
    positives, order = torch.tensor([1, 4, 4, 9, 0]), torch.randperm(K)
    found = prototype_loss_func(
        query,
        centroids,
        phi,
        positives,
        torch.arange(len(query)),
        negatives_of(positives, order, 3),
    )
    new = torch.randperm(K)
    other = torch.empty_like(centroids)
    other[new], other_phi = centroids, torch.empty_like(phi)
    other_phi[new] = phi
    renamed = new[positives]
    again = prototype_loss_func(
        query, other, other_phi, renamed, torch.arange(5), negatives_of(renamed, new[order], 3)
    )
    assert again.item() == pytest.approx(found.item(), rel=1e-12)


def test_two_images_of_one_cluster_cannot_go_below_log_2():
    """The other's column is the same prototype, and counts as a negative."""
    centroids, positives = torch.eye(4, dtype=torch.float64), torch.tensor([2, 2])
    query = centroids[positives]
    phi = torch.full((4,), 0.01, dtype=torch.float64)
    loss = prototype_loss_func(
        query,
        centroids,
        phi,
        positives,
        torch.arange(len(query)),
        negatives_of(positives, torch.arange(4), 3),
    )
    assert loss.item() == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("count", [0, 1, 5, 7, 100])
def test_negatives_are_none_of_the_batch_and_each_is_drawn_once(count):
    K, positives = 10, torch.tensor([3, 3, 8, 1])
    for seed in range(20):
        order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
        found = negatives_of(positives, order, count)
        kept = found.columns_J[found.kept_J].tolist()
        assert kept == [k for k in order.tolist() if k not in (1, 3, 8)][:count]


def test_a_batch_of_all_clusters_has_no_negatives():
    positives = torch.arange(4).repeat(2)
    found = negatives_of(positives, torch.randperm(4), 3)
    assert not found.kept_J.any()
    loss = prototype_loss_func(
        unit(8, 5),
        unit(4, 5, seed=1),
        torch.ones(4, dtype=torch.float64),
        positives,
        torch.arange(8),
        found,
    )
    assert loss.isfinite()


def test_gradients_and_the_shares_of_two_ranks():
    """The mean over ranks, of different images, is what one process has for the whole batch."""
    K, N = 9, 6
    centroids, phi = unit(K, 5, seed=1), torch.linspace(0.1, 0.5, K, dtype=torch.float64)
    positives = torch.tensor([0, 5, 5, 2, 8, 2])
    negatives = negatives_of(positives, torch.randperm(K), 3)
    scale = torch.arange(1, N + 1)[:, None] / N
    query, key, queue = unit(N, 5) * scale, unit(N, 5, seed=3), unit(7, 5, seed=4).T

    def both(rows, own):
        prototypes = prototype_loss_func(rows, centroids, phi, positives, own, negatives)
        return prototypes + instance_loss_func(rows, key[own], queue, T)

    every = torch.arange(N)
    whole = query.clone().requires_grad_()
    both(whole, every).backward()
    halves = [query[rank::2].clone().requires_grad_() for rank in range(2)]
    parts = [both(half, every[rank::2]) for rank, half in enumerate(halves)]
    (sum(parts) / 2).backward()
    for rank, half in enumerate(halves):
        assert (half.grad - whole.grad[rank::2]).abs().max() < 1e-14
    assert (sum(parts) / 2).item() == pytest.approx(both(whole, every).item(), rel=1e-13)
    assert torch.autograd.gradcheck(lambda rows: both(rows, every), (whole,))


def test_a_batch_of_one():
    query, positives = unit(1, 5), torch.tensor([2])
    negatives = negatives_of(positives, torch.arange(4), 2)
    phi = torch.ones(4, dtype=torch.float64)
    assert (
        prototype_loss_func(query, unit(4, 5), phi, positives, torch.arange(len(query)), negatives)
        > 0
    )
    assert instance_loss_func(query, query, unit(7, 5, seed=1).T, T) > 0


def test_half_precision_is_computed_in_float32():
    query, queue = unit(3, 5, dtype=torch.bfloat16), unit(7, 5, dtype=torch.float32).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert instance_loss_func(query, query, queue, T).dtype == torch.float32


# ------------------------------------------------------------------------------ concentration


def written_out(distances, clusters, K):
    """Before clipping: sum ||v - c|| / (Z log(Z + alpha)); the largest for clusters of one or none."""
    phi = []
    for k in range(K):
        own = [d for d, c in zip(distances.tolist(), clusters.tolist()) if c == k]
        phi.append(sum(own) / (len(own) * math.log(len(own) + 10)) if len(own) > 1 else None)
    largest = max(value for value in phi if value is not None)
    return torch.tensor([largest if value is None else value for value in phi]).double()


def test_concentrations_are_those_of_the_formula_clipped_and_scaled():
    generator = torch.Generator().manual_seed(0)
    K, n = 12, 200
    distances = torch.rand(n, generator=generator, dtype=torch.float64)
    clusters = torch.randint(K - 1, (n,), generator=generator)  # the last is empty
    phi = written_out(distances, clusters, K)
    ends = phi.sort().values
    low, high = (torch.quantile(ends, q).item() for q in (0.1, 0.9))
    clipped = phi.clamp(low, high)
    found = concentration_func(distances, clusters, K, T)
    assert torch.allclose(found, T * clipped / clipped.mean(), rtol=1e-12)
    assert found.mean().item() == pytest.approx(T, rel=1e-12)
    assert ALPHA == 10


def test_equal_clusters_have_the_temperature():
    clusters = torch.arange(5).repeat(4)
    found = concentration_func(torch.full((20,), 0.3), clusters, 5, T)
    assert torch.allclose(found, torch.full((5,), T))


@pytest.mark.parametrize(
    "clusters",
    [torch.arange(6), torch.zeros(6, dtype=torch.long), torch.tensor([0, 0, 1, 1, 2, 2])],
    ids=["clusters of one", "one cluster", "copies"],
)
def test_where_nothing_tells_clusters_apart_they_have_the_temperature(clusters):
    """In the authors' code 0 / 0, and NaN in every logit."""
    found = concentration_func(torch.zeros(6), clusters, 6, T)
    assert torch.equal(found, torch.full((6,), T))


def test_clusters_of_copies_have_a_temperature_above_0():
    distances = torch.tensor([0.0] * 8 + [0.5, 0.7])
    clusters = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    found = concentration_func(distances, clusters, 5, T)
    assert (found > 0).all() and found.mean().item() == pytest.approx(T)


def test_what_is_not_finite_is_not_hidden():
    distances = torch.tensor([float("nan"), 0.1, 0.2, 0.3])
    assert concentration_func(distances, torch.tensor([0, 0, 1, 1]), 2, T).isnan().any()


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: instance_loss_func(unit(3, 4), unit(2, 4), unit(5, 4).T, T), r"received \(2, 4\)"),
        (lambda: instance_loss_func(unit(3, 4), unit(3, 4), unit(5, 4), T), r"received \(4, 5\)"),
        (lambda: instance_loss_func(unit(3, 4), unit(3, 4), unit(5, 4).T, 0), "received 0"),
        (lambda: instance_loss_func(unit(4), unit(4), unit(5, 4).T, T), r"received \(4,\)"),
        (lambda: negatives_of(torch.zeros(2).long(), torch.arange(3), -1), "received -1"),
        (lambda: negatives_of(torch.zeros(2, 1).long(), torch.arange(3), 1), r"\(2, 1\)"),
        (lambda: loss_of(unit(3, 4), unit(5, 3), 5, 3), r"received \(5, 3\)"),
        (lambda: loss_of(unit(3, 4), unit(5, 4), 4, 3), r"received \(4,\)"),
        (lambda: loss_of(unit(3, 4), unit(5, 4), 5, 2), r"received 2 and \(3,\)"),
        (lambda: concentration_func(torch.ones(3), torch.zeros(2).long(), 2, T), r"\(3,\)"),
        (lambda: concentration_func(torch.ones(2), torch.zeros(2).long(), 0, T), "received 0"),
    ],
)
def test_what_does_not_fit_is_said(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def loss_of(query, centroids, phi, positives):
    positives, own = torch.zeros(positives, dtype=torch.long), torch.arange(len(query))
    return prototype_loss_func(query, centroids, torch.ones(phi), positives, own, none_drawn())
