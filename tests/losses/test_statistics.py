"""Information, prototypes in use, effective rank and the largest logit against values known or worked out by hand."""

import math
from collections import Counter

import pytest
import torch

from carp_plugin.losses import assignment_statistics
from carp_plugin.losses.statistics import effective_rank, largest_logit

K, D, B = 48, 5, 6


def problem(dtype=torch.float64, images=7):
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(images, D, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    C = torch.randn(K, D, generator=g, dtype=torch.float64).to(dtype)
    return views, C, torch.randperm(K, generator=g)


@pytest.mark.parametrize("max_blocks", [1, 3, 8, 100])
def test_naive_reference(max_blocks):
    views, C, permutation = problem()
    information, used, perplexity = [], [], []
    blocks = permutation.view(-1, B)[:max_blocks]
    for block in blocks:
        rows = [[math.exp(z @ C[k]) for k in block] for view in views for z in view]
        rows = [[e / sum(row) for e in row] for row in rows]
        mean = [sum(column) / len(rows) for column in zip(*rows)]
        entropies = [-sum(p * math.log(p) for p in row) for row in rows]
        information.append(-sum(p * math.log(p) for p in mean) - sum(entropies) / len(rows))
        firsts = Counter(row.index(max(row)) for row in rows)
        shares = [count / len(rows) for count in firsts.values()]
        used.append(len(firsts) / B)
        perplexity.append(math.exp(-sum(p * math.log(p) for p in shares)))
    statistics = assignment_statistics(views, C, permutation, B, max_blocks=max_blocks)
    assert statistics.information.item() == pytest.approx(sum(information) / len(blocks), rel=1e-12)
    assert statistics.prototypes_used.item() == pytest.approx(sum(used) / len(blocks), rel=1e-12)
    assert statistics.perplexity.item() == pytest.approx(sum(perplexity) / len(blocks), rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_constant_output_carries_no_information(scale):
    """Uniform, in between and one-hot alike: whatever its loss, nothing was learnt."""
    views, C, permutation = problem()
    constant = scale * views[0][:1].expand(7, D)
    statistics = assignment_statistics([constant, constant], C, permutation, B)
    assert statistics.information.item() == pytest.approx(0.0, abs=1e-12)
    assert statistics.prototypes_used.item() == pytest.approx(1 / B)
    assert statistics.perplexity.item() == pytest.approx(1)


def test_each_image_its_own_prototype_carries_all_information():
    z = 1e4 * torch.eye(B)
    C = torch.eye(B).repeat(4, 1)
    statistics = assignment_statistics([z, z], C, torch.arange(4 * B), B)
    assert statistics.information.item() == pytest.approx(math.log(B), rel=1e-6)
    assert statistics.prototypes_used == 1
    assert statistics.perplexity.item() == pytest.approx(B)


def test_only_the_first_blocks_are_looked_at():
    views, C, permutation = problem()
    expected = assignment_statistics(views, C, permutation, B, max_blocks=2)
    C[permutation[2 * B :]] = float("nan")
    assert assignment_statistics(views, C, permutation, B, max_blocks=2) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_compute_in_single(dtype):
    views, C, permutation = problem(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = assignment_statistics(views, C, permutation, B)
    exact = assignment_statistics([v.double() for v in views], C.double(), permutation, B)
    assert {value.dtype for value in actual} == {torch.float32}
    assert actual.information.item() == pytest.approx(exact.information.item(), abs=1e-6)
    assert actual.prototypes_used.item() == pytest.approx(exact.prototypes_used.item(), rel=1e-6)


def test_no_graph_is_kept():
    views, C, permutation = problem()
    statistics = assignment_statistics([v.requires_grad_() for v in views], C, permutation, B)
    assert not any(value.requires_grad for value in statistics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": []}, "embeddings: expected at least 1 view, received 0"),
        ({"embeddings": [torch.ones(7, D + 1)]}, r"embeddings\[0\]: .*received \(7, 6\)"),
        ({"embeddings": [torch.ones(0, D)]}, r"N >= 1.*received \(0, 5\)"),
        ({"max_blocks": 0}, "max_blocks: expected at least 1, received 0"),
        ({"partition_size": 7}, "positive divisor of K = 48, received 7"),
        ({"permutation": torch.arange(6)}, r"permutation: expected shape \(48,\)"),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    views, C, permutation = problem()
    arguments = {
        "embeddings": views,
        "prototypes": C,
        "permutation": permutation,
        "partition_size": B,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        assignment_statistics(**arguments)


@pytest.mark.parametrize("rows, dims", [(40, 12), (12, 40)])
def test_effective_rank_is_that_of_the_singular_values(rows, dims):
    features = torch.randn(rows, dims, generator=torch.Generator().manual_seed(1))
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    assert effective_rank(features) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(1e-3 * features) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_counts_directions_and_never_more_than_rows():
    basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    for directions in (1, 3, 16):
        rows = basis[:directions].repeat(5, 1)
        assert effective_rank(rows) == pytest.approx(directions, rel=1e-6)
    assert effective_rank(torch.ones(7, 4)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.randn(3, 500)) <= 3 + 1e-9


def test_effective_rank_of_what_has_none():
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("inf")]])))
    for shape in [(0, 3), (3,), (3, 0)]:
        with pytest.raises(ValueError, match=r"expected shape \(R, F\)"):
            effective_rank(torch.ones(shape))


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_largest_logit_is_that_of_the_finite_rows(rows):
    (z, _), C, _ = problem(torch.float32)
    z[2], z[3, 1] = 1e3, float("nan")
    kept = torch.cat([z[:3], z[4:]])
    expected = float((kept @ C.T).abs().max())
    assert largest_logit(z, C, rows=rows) == pytest.approx(expected, rel=1e-6)


def test_largest_logit_of_nothing_finite_is_nan_and_an_overflow_is_left_out():
    C = torch.ones(4, 2)
    assert math.isnan(largest_logit(torch.full((3, 2), float("nan")), C))
    z = torch.tensor([[3e38, 3e38], [1.0, 1.0]])
    assert largest_logit(z, C) == 2
    assert largest_logit(z.half()[1:], C.half()) == 2
