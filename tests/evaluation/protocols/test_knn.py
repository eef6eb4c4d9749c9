"""Weighted k-NN: equal to a float64 reference and to the host's classifier, whatever the chunks and the backend."""

import math

import numpy as np
import pytest
import torch

from carp_plugin.errors import UserError
from carp_plugin.evaluation import search as searching
from carp_plugin.evaluation.protocols.knn import classify, doubt_on_top5, weighted_knn
from carp_plugin.evaluation.search import Found, Neighbours, nearest, search
from carp_plugin.evaluation.store import Features
from carp_plugin.host import WeightedKNNClassifier

KINDS = (1, 5, 20, 50)


def blobs(seed, n, classes=8, dim=16, spread=1.2):
    """Features around the axes, not normalised, of overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (n,), generator=generator)
    feats = torch.eye(classes, dim)[targets] + spread * torch.randn(n, dim, generator=generator) / 3
    return Features(3 * feats, targets)


BANK, QUERIES = blobs(0, 400), blobs(1, 90)


def reference(bank, queries, k, temperature, classes):
    """Brute force in float64: scores (Q, classes)."""
    unit = torch.nn.functional.normalize
    similarities = unit(queries.feats.double()) @ unit(bank.feats.double()).T
    scores = torch.zeros(len(queries.feats), classes, dtype=torch.float64)
    for row, (values, indices) in enumerate(zip(*similarities.topk(k))):
        scores[row].index_add_(0, bank.targets[indices], (values / temperature).exp())
    return scores


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_predictions_are_those_of_brute_force_in_float64(temperature):
    found = weighted_knn(BANK, QUERIES, KINDS, temperature)
    for k in KINDS:
        scores = reference(BANK, QUERIES, k, temperature, 8)
        assert torch.equal(found.predictions[k], scores.argmax(dim=1))
        hits = (scores.argmax(dim=1) == QUERIES.targets).double().mean() * 100
        assert found.top1[k] == pytest.approx(float(hits))
    assert 40 < found.top1[20] < 95 and found.top1[20] < found.top5[20] < 100


@pytest.mark.parametrize("half", [False, True])
def test_accuracies_are_those_of_the_host_on_the_same_rows(half):
    bank, queries = (
        Features(torch.nn.functional.normalize(f).half() if half else f, t)
        for f, t in (BANK, QUERIES)
    )
    found = weighted_knn(bank, queries, KINDS)
    for k in KINDS:
        classifier = WeightedKNNClassifier(k=k, T=0.07, distance_fx="cosine")
        classifier.update(train_features=bank.feats.float(), train_targets=BANK.targets)
        classifier.update(test_features=queries.feats.float(), test_targets=QUERIES.targets)
        assert [found.top1[k], found.top5[k]] == pytest.approx(list(classifier.compute()))


@pytest.mark.parametrize("chunk", [1, 7, 30, 400, 1000])
def test_chunks_change_nothing(chunk):
    whole, parts = (
        nearest(BANK.feats, QUERIES.feats, 30),
        nearest(BANK.feats, QUERIES.feats, 30, chunk=chunk),
    )
    assert np.array_equal(whole.indices, parts.indices)
    assert np.allclose(whole.similarities, parts.similarities, atol=1e-6)
    assert (np.diff(whole.similarities) <= 0).all()


@pytest.mark.parametrize("free", [math.inf, 0.0], ids=["resident", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("chunk", [None, 7, 64])
def test_the_way_of_a_card_finds_the_same(chunk, dtype, free, device, monkeypatch):
    """Its products, its merging and its order of equals."""
    bank = BANK.feats.to(dtype)
    true = nearest(bank, QUERIES.feats, 30, chunk=64)
    monkeypatch.setattr(searching, "_CARD_VALUES", 5000)
    monkeypatch.setattr(searching, "_free_bytes", lambda device: free)
    found = searching._nearest_on(device, bank, QUERIES.feats, 30, chunk)
    assert np.allclose(found.similarities, true.similarities, atol=1e-6)
    apart = np.diff(true.similarities, axis=1) < -1e-6  # equal to rounding: either order is right
    same = found.indices == true.indices
    assert same[:, 1:-1][apart[:, :-1] & apart[:, 1:]].all() and same.mean() > 0.95
    signs = torch.randn(
        400, 64, generator=torch.Generator().manual_seed(2)
    ).sign()  # exact products
    thrice = torch.cat([signs, signs[:10], signs[:10]]).to(dtype)
    itself = searching._nearest_on(device, thrice, signs[:10], 3, chunk)
    assert np.array_equal(itself.indices, [[i, 400 + i, 410 + i] for i in range(10)])


def test_the_way_of_a_card_refuses_what_is_not_finite(device):
    bank = BANK.feats.clone()
    bank[3, 2] = math.nan
    for rows, queries in ((bank, QUERIES.feats), (QUERIES.feats, bank)):
        with pytest.raises(UserError, match="not finite, which cannot be compared"):
            searching._nearest_on(device, rows, queries, 5)


@pytest.mark.parametrize("chunk", [2, 5, 40])
def test_equal_neighbours_stand_in_the_order_of_the_bank(chunk):
    bank = torch.eye(4).repeat(10, 1)  # rows 0, 4, 8, ... are the same
    found = nearest(bank, torch.eye(4)[:1], 12, chunk=chunk)
    assert found.indices[0, :10].tolist() == list(range(0, 40, 4))
    assert found.similarities[0].tolist() == [1.0] * 10 + [0.0] * 2


def found_by_hand(similarities, indices):
    return Found(Neighbours(np.float32(similarities), np.int64(indices)), "exact", None)


def test_votes_are_weighed_by_similarity():
    found = found_by_hand([[0.9, 0.8, 0.8]], [[0, 1, 2]])
    labels = torch.tensor([1, 0, 0])
    # exp(0.9 / tau) against 2 exp(0.8 / tau): equal at tau = 0.1 / log 2
    for tau, winner in ((0.1 / math.log(2) * 0.99, 1), (0.1 / math.log(2) * 1.01, 0)):
        assert classify(found, labels, torch.tensor([0]), [3], tau).predictions[3].tolist() == [
            winner
        ]


def test_equal_scores_go_to_the_lower_class_and_small_temperatures_do_not_overflow():
    found = found_by_hand([[0.5, 0.5]], [[0, 1]])
    result = classify(found, torch.tensor([2, 1]), torch.tensor([1]), [2], temperature=1e-4)
    assert result.predictions[2].tolist() == [1] and result.top1[2] == 100.0


def test_the_top_five_are_counted_by_rank():
    found = found_by_hand([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 2, [[0, 1, 2, 3, 4, 5]] * 2)
    labels = torch.arange(6)
    result = classify(found, labels, torch.tensor([4, 5]), [3, 6])
    assert result.top5[6] == 50.0 and result.top1[6] == 0.0
    assert result.top5[3] == 0.0  # three neighbours make three candidates


def test_classes_are_counted_in_both_sets():
    bank = Features(torch.eye(3), torch.tensor([0, 1, 7]))
    result = weighted_knn(bank, Features(torch.eye(3)[:2], torch.tensor([0, 1])), [1])
    assert result.classes == 8 and result.top1[1] == 100.0
    result = weighted_knn(bank, Features(torch.eye(3)[:2], torch.tensor([0, 9])), [1])
    assert result.classes == 10 and result.top1[1] == 50.0
    assert result.correct[1].tolist() == [True, False] and result.accuracy == {"1": [50.0, 50.0]}


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_an_approximate_index_measures_its_recall(index):
    bank, queries = blobs(0, 2000), blobs(1, 60)
    found = search(bank.feats, queries.feats, 10, index=index)
    true = nearest(bank.feats, queries.feats, 10)
    overlap = [len(set(f) & set(t)) / 10 for f, t in zip(found.neighbours.indices, true.indices)]
    assert found.recall == pytest.approx(np.mean(overlap))
    assert 0.5 < found.recall <= 1.0
    result = weighted_knn(bank, queries, [10], index=index)
    assert result.index == index and result.recall == pytest.approx(found.recall)
    assert weighted_knn(bank, queries, [10]).recall is None


@pytest.mark.parametrize(
    "change, says",
    [
        ({"k": [401]}, "between 1 and the 400 rows of the bank, got 401"),
        ({"k": []}, "got 0"),
        ({"k": [0, 5]}, "k must lie between 1"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"index": "lsh"}, "one of exact, ivf, hnsw, got 'lsh'"),
        ({"queries": blobs(1, 9, dim=9)}, "differ in size: 16 and 9"),
        ({"bank": Features(BANK.feats, BANK.targets[:9])}, "targets do not fit"),
        ({"bank": Features(BANK.feats[:0], BANK.targets[:0])}, "N > 0"),
    ],
)
def test_what_does_not_fit_is_a_value_error(change, says):
    with pytest.raises(ValueError, match=says):
        weighted_knn(**{"bank": BANK, "queries": QUERIES, "k": [5], **change})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_has_no_neighbours(value):
    feats = BANK.feats.clone()
    feats[3, 2] = value
    with pytest.raises(UserError, match="not finite"):
        weighted_knn(Features(feats, BANK.targets), QUERIES, [5])


def test_queries_whose_class_nobody_voted_for_are_counted_apart():
    # of six classes, two neighbours vote for 4 and 5: 0, 1 and 2 fill the five up by their low numbers
    found = found_by_hand([[0.9, 0.8, 0.7, 0.6, 0.5]] * 4, [[0, 0, 0, 1, 1]] * 4)
    result = classify(found, torch.tensor([5, 4]), torch.tensor([5, 4, 1, 3]), [3, 5])
    assert result.top5 == {3: 50.0, 5: 75.0}  # of three: 5, 0, 1; of five: 5, 4, 0, 1, 2
    assert result.short == {3: 4, 5: 4} and result.unvoted == {3: 1, 5: 1}
    said = doubt_on_top5({"student backbone": result})
    assert said.startswith("warning: ") and "1 of 4 images with k = 5 (student backbone)" in said
    assert "25.00 of its 75.00 %" in said


def test_a_top_five_of_votes_alone_and_one_of_few_classes_are_not_questioned():
    voted = found_by_hand([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]], [[0, 1, 2, 3, 4, 5]])
    result = classify(voted, torch.arange(6), torch.tensor([4]), [6])
    assert result.short == {6: 0} and result.unvoted == {6: 0}
    assert doubt_on_top5({"student": result}) is None
    lonely = found_by_hand([[0.9] * 5], [[0] * 5])
    few = classify(lonely, torch.tensor([3]), torch.tensor([0]), [5])  # four classes
    assert few.unvoted == {5: 1} and few.top5 == {5: 100.0}
    assert doubt_on_top5({"student": few}) is None
