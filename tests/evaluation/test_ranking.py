"""Measures of rankings: scikit-learn's without ties, the mean over all orders with them."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from carp_plugin.errors import UserError
from carp_plugin.evaluation import ranking
from carp_plugin.evaluation.ranking import (
    STEPS,
    Ties,
    average_precision,
    hit_at,
    precision_at,
    similarities,
    ties,
)


def trapezoids(places):
    """AP of the Oxford protocol from the places (from 0) of the positives, written out."""
    area = 0.0
    for j, place in enumerate(sorted(places)):
        before = j / place if place else 1.0
        area += (before + (j + 1) / (place + 1)) / 2
    return area / len(places)


def staircase(places):
    """AP as the mean of the precisions at the positives."""
    return sum((j + 1) / (place + 1) for j, place in enumerate(sorted(places))) / len(places)


def hit(places, k):
    """Whether a positive is among the first k."""
    return float(min(places) < k)


def revisited_precision(places, k):
    """P@k of the revisited protocol: of the first min(k, place of the last positive)."""
    places = np.sort(places) + 1
    k = min(places.max(), k)
    return (places <= k).sum() / k


def over_all_orders(values, positive, measure):
    """The mean of a measure over every order in which equal values may stand."""
    kinds = sorted(set(values), reverse=True)
    groups = [[i for i, value in enumerate(values) if value == kind] for kind in kinds]
    found = []
    for orders in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        order = [i for group in orders for i in group]
        found.append(measure([place for place, i in enumerate(order) if positive[i]]))
    return sum(found) / len(found)


CASES = [
    ([5, 5, 5, 5], [1, 0, 1, 0]),
    ([5, 5, 4, 4, 4, 1], [0, 1, 1, 0, 1, 0]),
    ([9, 7, 7, 7, 7, 2, 2], [1, 0, 1, 0, 0, 1, 0]),
    ([3, 3, 2, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
    ([4, 3, 2, 1], [0, 1, 0, 1]),
    ([2, 2, 2], [1, 1, 1]),
    ([6, 6, 6, 6, 6, 6], [0, 0, 0, 0, 0, 1]),
]


@pytest.mark.parametrize("values, positive", CASES)
def test_every_measure_is_its_mean_over_the_orders_of_equal_rows(values, positive):
    made = ties(np.int32(values), np.array(positive, dtype=bool))
    exact = {"rel": 1e-12, "abs": 1e-12}
    wanted = over_all_orders(values, positive, staircase)
    assert average_precision(made) == pytest.approx(wanted, **exact)
    wanted = over_all_orders(values, positive, trapezoids)
    assert average_precision(made, trapezoids=True) == pytest.approx(wanted, **exact)
    for k in range(1, len(values) + 3):
        wanted = over_all_orders(values, positive, partial(hit, k=k))
        assert hit_at(made, k) == pytest.approx(wanted, **exact)
        wanted = over_all_orders(values, positive, partial(revisited_precision, k=k))
        assert precision_at(made, k) == pytest.approx(wanted, **exact)


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_it_is_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    values = generator.permutation(200).astype(np.int32)
    positive = generator.random(200) < 0.1
    positive[0] = True
    found = average_precision(ties(values, positive))
    assert found == pytest.approx(average_precision_score(positive, values), rel=1e-12)


def test_a_long_ranking_is_summed_as_exactly_as_a_short_one():
    """One positive in a group of ten behind a thousand million rows, against the sum written out."""
    b, n = 1e9, 10.0
    made = Ties(np.array([b]), np.array([n]), np.array([1.0]))
    wanted = math.fsum(1 / (b + j) for j in range(1, 11)) / 10
    assert average_precision(made) == pytest.approx(wanted, rel=1e-12)
    for b in (99_999.0, 100_001.0):  # on both sides of where the formula changes
        wanted = math.fsum(1 / (b + j) for j in range(1, 11)) / 10
        made = Ties(np.array([b]), np.array([n]), np.array([1.0]))
        assert average_precision(made) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("held", [2**27, 40, 5])
def test_similarities_are_cosines_whatever_is_held_at_once(held, monkeypatch):
    monkeypatch.setattr(ranking, "_HELD", held)
    monkeypatch.setattr(ranking, "_VALUES", 90)
    monkeypatch.setattr(ranking, "_QUERIES", 2)
    generator = torch.Generator().manual_seed(0)
    banks = [torch.randn(n, 5, generator=generator) for n in (13, 8)]
    queries = torch.randn(11, 5, generator=generator)
    starts, blocks = zip(*similarities(banks, queries))
    unit = torch.nn.functional.normalize
    wanted = unit(queries.double()) @ unit(torch.cat(banks).double()).T
    found = np.concatenate(blocks)
    assert list(starts) == list(np.cumsum([0, *map(len, blocks)])[:-1]) and len(blocks) > 1
    assert np.abs(found - STEPS * wanted.numpy()).max() <= 1


def test_equal_rows_are_equally_similar_wherever_they_stand():
    """Products of matrices round by place: features of a collapsed network must not be told apart by it."""
    generator = torch.Generator().manual_seed(3)
    row = torch.randn(1, 777, generator=generator)
    ((_, block),) = similarities([row.repeat(501, 1)], row.repeat(7, 1))
    assert (block == STEPS).all()
    ((_, block),) = similarities([torch.zeros(5, 3)], torch.zeros(2, 3))
    assert (block == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_similarity(value):
    rows = torch.ones(4, 3)
    rows[2, 1] = value
    with pytest.raises(UserError, match="not finite"):
        list(similarities([rows], torch.ones(2, 3)))
    with pytest.raises(UserError, match="not finite"):
        list(similarities([torch.ones(2, 3)], rows))
