import math

import pytest
import torch

from carp_plugin.losses import assignment_statistics

K, D, B = 48, 5, 6


def problem(dtype=torch.float64, images=7):
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(images, D, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    C = torch.randn(K, D, generator=g, dtype=torch.float64).to(dtype)
    return views, C, torch.randperm(K, generator=g)


@pytest.mark.parametrize("max_blocks", [1, 3, 8, 100])
def test_naive_reference(max_blocks):
    views, C, permutation = problem()
    information, used, blocks = [], [], permutation.view(-1, B)[:max_blocks]
    for block in blocks:
        rows = [[math.exp(z @ C[k]) for k in block] for view in views for z in view]
        rows = [[e / sum(row) for e in row] for row in rows]
        mean = [sum(column) / len(rows) for column in zip(*rows)]
        entropies = [-sum(p * math.log(p) for p in row) for row in rows]
        information.append(-sum(p * math.log(p) for p in mean) - sum(entropies) / len(rows))
        used.append(len({row.index(max(row)) for row in rows}) / B)
    statistics = assignment_statistics(views, C, permutation, B, max_blocks=max_blocks)
    assert statistics.information.item() == pytest.approx(sum(information) / len(blocks), rel=1e-12)
    assert statistics.prototypes_used.item() == pytest.approx(sum(used) / len(blocks), rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_constant_output_carries_no_information(scale):
    """Uniform, in between and one-hot alike: whatever its loss, nothing was learnt."""
    views, C, permutation = problem()
    constant = scale * views[0][:1].expand(7, D)
    statistics = assignment_statistics([constant, constant], C, permutation, B)
    assert statistics.information.item() == pytest.approx(0.0, abs=1e-12)
    assert statistics.prototypes_used.item() == pytest.approx(1 / B)


def test_each_image_its_own_prototype_carries_all_information():
    z = 1e4 * torch.eye(B)
    C = torch.eye(B).repeat(4, 1)
    statistics = assignment_statistics([z, z], C, torch.arange(4 * B), B)
    assert statistics.information.item() == pytest.approx(math.log(B), rel=1e-6)
    assert statistics.prototypes_used == 1


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
