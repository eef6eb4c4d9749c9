"""Clusters against classes: scikit-learn's scores, brute force over assignments, prototypes, and hardly any data."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn import metrics

from carp_plugin.errors import UserError
from carp_plugin.evaluation.protocols.clustering import (
    agreement,
    besides,
    clustering,
    kmeans,
    matched,
    measure,
    prototype_scores,
)
from carp_plugin.evaluation.prototypes import assign, prototypes_of
from carp_plugin.evaluation.search import unit_rows
from carp_plugin.evaluation.store import Features
from carp_plugin.methods.carp import Prototypes
from carp_plugin.partition import random_partition
from carp_plugin.settings.protocols import Clustering
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.evaluation.test_shape import made_images
from tests.helpers import image_folder, small_settings


def blobs(seed=0, n=120, classes=3, dim=6, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % classes
    feats = torch.eye(classes, dim)[targets] + spread * torch.randn(n, dim, generator=generator)
    return Features(F.normalize(feats), targets)


def best_by_brute_force(labels, clusters):
    """Of all one-to-one assignments of clusters to classes the most images that one gets right."""
    kinds, names = np.unique(clusters), np.unique(labels)
    names = [*names, *[-1] * len(kinds)]  # a cluster may be left without a class
    return max(
        sum(((clusters == kind) & (labels == name)).sum() for kind, name in zip(kinds, chosen))
        for chosen in set(itertools.permutations(names, len(kinds)))
    )


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_accuracy_is_that_of_the_best_of_all_assignments(k):
    generator = np.random.default_rng(k)
    labels, clusters = generator.integers(0, 3, 40), generator.integers(0, k, 40)
    right = matched(labels, clusters)
    assert right.sum() == best_by_brute_force(labels, clusters)
    if k == 5:  # surplus clusters are wrong as a whole
        assert len(np.unique(clusters[right])) <= 3


def test_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    labels, clusters = generator.integers(0, 4, 70), generator.integers(0, 6, 70)
    found = agreement(labels, clusters)
    assert found["NMI"] == 100 * metrics.normalized_mutual_info_score(labels, clusters)
    assert found["AMI"] == 100 * metrics.adjusted_mutual_info_score(labels, clusters)
    assert found["ARI"] == 100 * metrics.adjusted_rand_score(labels, clusters)
    majority = sum(np.bincount(labels[clusters == kind]).max() for kind in range(6))
    assert found["purity"] == pytest.approx(100 * majority / 70)
    assert found["accuracy"] <= found["purity"]


def test_the_start_of_highest_objective_is_scored():
    data = blobs(spread=1.2)
    found = clustering(data, [4], starts=6, iterations=3, seed=1)
    rows = unit_rows(data.feats).numpy()
    starts = [kmeans(rows, 4, 3, seed) for seed in range(1, 7)]
    objectives = [start.objective for start in starts]
    assert len(set(objectives)) > 1
    assert found.details["k"]["4"]["objectives"] == objectives
    best = starts[int(np.argmax(objectives))]
    wanted = agreement(data.targets.numpy(), best.clusters)
    assert found.scores == {f"{name} (k = 4)": value for name, value in wanted.items()}
    over = found.details["k"]["4"]["over_starts"]["NMI"]
    each = [agreement(data.targets.numpy(), start.clusters)["NMI"] for start in starts]
    assert over == {"mean": np.mean(each), "deviation": np.std(each, ddof=1)}
    assert clustering(data, [4], 6, 3, 1).scores == found.scores


def test_kmeans_puts_rows_to_the_mean_of_highest_cosine():
    data = blobs()
    start = kmeans(data.feats.numpy(), 3)
    centres = F.normalize(
        torch.stack([data.feats[start.clusters == kind].mean(dim=0) for kind in range(3)])
    )
    cosines = data.feats @ centres.T
    assert np.array_equal(cosines.argmax(dim=1).numpy(), start.clusters)
    assert start.objective == pytest.approx(float(cosines.max(dim=1).values.mean()), abs=1e-6)


def test_classes_that_lie_apart_are_found():
    found = clustering(blobs(spread=0.01))
    assert all(value == pytest.approx(100) for value in found.scores.values())
    assert found.details["classes"] == 3 and list(found.details["k"]) == ["3"]
    assert found.per_image["accuracy (k = 3)"].all()


def test_random_features_score_chance():
    found = [
        clustering(Features(blobs(s).feats, blobs(s).targets[torch.randperm(120)]), seed=s).scores
        for s in range(10)
    ]
    for name in ("AMI (k = 3)", "ARI (k = 3)"):
        values = np.array([one[name] for one in found])
        assert abs(values.mean()) < 5 and values.max() < 15
    assert all(33.4 <= one["accuracy (k = 3)"] < 60 for one in found)


@pytest.mark.parametrize("rows", [torch.full((60, 5), 0.4), torch.zeros(60, 5)])
def test_a_collapsed_network_is_one_cluster(rows):
    found = clustering(Features(rows, torch.arange(60) % 3))
    assert found.scores["accuracy (k = 3)"] == pytest.approx(100 / 3)
    for name in ("AMI", "NMI", "ARI"):
        assert found.scores[f"{name} (k = 3)"] == pytest.approx(0, abs=1e-9)
    assert found.details["k"]["3"]["used"] == 1
    assert found.remarks == ("warning: the features are the same for every image.",)


def test_hardly_any_images_earn_a_number_and_no_word_of_faiss(capfd):
    data = blobs()
    few = Features(data.feats[:7], data.targets[:7])
    found = clustering(few, [3, 7])
    assert list(found.details["k"]) == ["3", "7"] and found.scores["purity (k = 7)"] == 100.0
    alone = clustering(Features(torch.eye(3), torch.arange(3)))
    assert "every image is a class of its own" in alone.remarks[0]
    assert all(np.isfinite(value) for value in alone.scores.values())
    gap = clustering(Features(data.feats, torch.tensor([0, 5, 9])[data.targets]))  # missing classes
    assert gap.scores == clustering(data).scores
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_scored_is_said():
    data = blobs()
    with pytest.raises(UserError, match="the images have one"):
        clustering(Features(data.feats, torch.ones(120).long()))
    with pytest.raises(UserError, match="clustering.k holds 121, and 120 images are clustered"):
        clustering(data, [3, 121])
    feats = data.feats.clone()
    feats[3, 2] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        clustering(Features(feats, data.targets))


@pytest.mark.parametrize("normalize", [True, False])
def test_images_go_to_the_prototype_of_highest_logit_whatever_their_length(normalize):
    torch.manual_seed(0)
    module, z = Prototypes(24, 6, normalize), 3 * torch.randn(50, 6)
    model = nn.Module()
    model.prototypes = module
    rows = prototypes_of(model, "student", 6)["prototypes"]
    logits = z @ module().T
    whole = assign(F.normalize(z), rows, torch.arange(24)[None])[:, 0]
    assert np.array_equal(whole, logits.argmax(dim=1).numpy())
    blocks = random_partition(0, 1, 24).view(-1, 4)
    within = assign(F.normalize(z), rows, blocks)
    for block, found in zip(blocks, within.T):
        assert np.array_equal(found, logits[:, block].argmax(dim=1).numpy())


def test_prototypes_of_linear_layers_and_of_several_heads_are_read():
    model = nn.Module()
    model.prototypes = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7, bias=False))
    z = torch.randn(20, 5)
    (rows,) = prototypes_of(model, "teacher", 5).values()
    assert torch.allclose(z @ rows.T, model.prototypes(z), atol=1e-6)
    model.prototypes = nn.ModuleList([nn.Linear(5, k, bias=False) for k in (3, 4)])
    assert [len(rows) for rows in prototypes_of(model, "student", 5).values()] == [3, 4]
    assert besides(model) == ("projector",) and besides(nn.Module()) == () and besides(None) == ()


@pytest.mark.parametrize("method", ["carp", "swav", "deepclusterv2"])
def test_prototypes_of_methods_are_those_that_their_logits_come_from(method, tmp_path):
    settings = small_settings(image_folder(tmp_path), method)
    model = build_model(settings, machine_of(settings)).eval()
    model.prototypes.requires_grad_(False)
    with torch.no_grad():
        out = model(torch.randn(6, 3, 16, 16))
    z = out["z"].float()
    found = prototypes_of(model, "student", z.shape[1])
    if method == "carp":
        wanted = [z @ model.prototypes().T]
    else:
        wanted = out["p"] if out["p"].dim() == 3 else [out["p"]]
    assert len(found) == len(wanted) == (2 if method == "deepclusterv2" else 1)
    for rows, logits in zip(found.values(), wanted):
        places = assign(F.normalize(z), rows, torch.arange(len(rows))[None])[:, 0]
        assert np.array_equal(places, logits.argmax(dim=1).numpy())
    if method == "carp":
        with torch.no_grad():
            model.momentum_prototypes.weight.add_(1.0)
        (teacher,) = prototypes_of(model, "teacher", z.shape[1]).values()
        assert torch.equal(teacher, model.momentum_prototypes())


def test_prototypes_are_scored_in_the_whole_and_within_blocks():
    data = blobs(spread=0.05)
    perfect = F.normalize(torch.eye(3, 6))
    scores, details = prototype_scores(data.targets.numpy(), data.feats, perfect)
    assert {name: pytest.approx(100.0) for name in ("AMI", "NMI", "ARI", "homogeneity")} == scores
    assert details == {"number": 3, "used": 3}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 6, generator=generator)
    scores, details = prototype_scores(data.targets.numpy(), data.feats, rows, 4, seed=7)
    found = []
    for step in range(4):
        for block in random_partition(7, step, 12).view(-1, 4):
            places = (data.feats @ rows[block].T).argmax(dim=1)
            found.append(100 * metrics.normalized_mutual_info_score(data.targets, places))
    assert scores["NMI, blocks"] == pytest.approx(np.mean(found))
    assert details["blocks"]["NMI"]["deviation"] == pytest.approx(np.std(found, ddof=1))
    assert details["blocks"]["scored"] == 12 and details["blocks"]["size"] == 4
    same, _ = prototype_scores(data.targets.numpy(), torch.ones(120, 6), rows, 4)
    assert all(value == pytest.approx(0, abs=1e-9) for value in same.values())


def test_prototypes_stand_with_the_first_column_of_their_network_and_cost_no_pass():
    images = made_images()
    model = nn.Module()
    model.prototypes, model.partition_size = Prototypes(8, 5), 4
    images.model = model
    images.networks = {"student": (nn.Flatten(), {"backbone": nn.Identity()})}
    plain = measure(images, Clustering(starts=1))
    assert not any("prototypes" in name for name in plain["student/backbone"].scores)
    images = made_images()
    images.model, networks = model, dict(images.networks)
    projector = networks["student"][1]["projector"]
    images.networks = {"student": (nn.Flatten(), {"backbone": nn.Identity()})}
    images.besides = {"student": {"projector": projector}}
    found = measure(images, Clustering(starts=1))
    assert list(found) == ["student/backbone"] == images.columns
    assert {"AMI (prototypes)", "NMI, blocks (prototypes)"} <= set(found["student/backbone"].scores)
    assert images.passes == {"val": 1}
    assert (
        measure(images, Clustering(images="train"))["student/backbone"].details["images"] == "train"
    )
    with torch.no_grad():
        model.prototypes.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="prototypes hold values that are not finite"):
        measure(images, Clustering(starts=1))
