"""Raw pixels as a floor: the protocol's k-NN without a network, once a comparison, in its record and its table."""

import json

import numpy as np
import pytest
import torch

from carp_plugin.compare import floors
from carp_plugin.compare.floors import ROWS, floors_of, lines_of_floors, pixel_floors
from carp_plugin.compare.plan import plan
from carp_plugin.compare.statistics import lines_of, markdown
from carp_plugin.data import idx
from carp_plugin.settings.pretraining import PretrainingData
from carp_plugin.settings.protocols import Neighbours
from tests.compare.configs import asked
from tests.compare.made import made_results
from tests.data.made_idx import write_idx
from tests.helpers import image_folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=6, size=16)


def votes(bank, labels, queries, k, temperature):
    """Classes of the queries, one after the other."""
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    found = []
    for query in queries:
        similarity = bank @ query
        near = np.argsort(-similarity)[:k]
        weight = np.exp(similarity[near] / temperature)
        found.append(np.argmax(np.bincount(labels[near], weight, minlength=10)))
    return np.array(found)


def test_floors_are_the_votes_of_the_nearest_pixels(tmp_path):
    folder = write_idx(tmp_path / "idx", train=60, test=40)
    paths = {"train_path": str(folder), "val_path": str(folder)}
    data = PretrainingData(dataset="fashion_mnist", num_workers=0, **paths)
    found = pixel_floors(data, Neighbours(k=(5,), temperature=0.1))
    rows = [
        np.stack(
            [idx.pixels(path).ravel() / 255 for path, _ in idx.idx_listing(folder, part).samples]
        )
        for part in ("train", "test")
    ]
    labels, targets = np.arange(60) % 10, np.arange(40) % 10
    for key, mean in (("pixels", 0), ("centred_pixels", rows[0].mean(axis=0))):
        expected = 100 * (votes(rows[0] - mean, labels, rows[1] - mean, 5, 0.1) == targets).mean()
        assert found[key]["5"][0] == pytest.approx(expected)


def test_larger_images_are_averaged_and_colours_stay_apart(tmp_path):
    root = image_folder(tmp_path, per_class=2, size=64)
    data = PretrainingData(
        dataset="custom",
        train_path=str(root / "train"),
        val_path=str(root / "val"),
        num_workers=0,
        eval_transform={"crop_size": 64},
    )
    seen = []
    found = floors._rows

    def rows(images, workers):
        seen.append(found(images, workers))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "_rows", rows)
        pixel_floors(data, Neighbours(k=(1,)))
    assert seen[0].feats.shape == (12, 3 * 32 * 32)
    assert torch.allclose(seen[0].feats.mean(), torch.tensor(0.0), atol=1e-6)  # centred by itself


def test_they_are_computed_once_of_the_images_and_the_protocol(images, monkeypatch):
    planned = plan(asked(images))
    found = floors_of(planned)
    assert set(found) == {*ROWS.values(), "of"} and set(found["pixels"]) == {"1", "5"}
    assert json.loads((planned.root / "floors.json").read_text()) == found
    calls = []
    monkeypatch.setattr(floors, "pixel_floors", lambda data, knn: calls.append(knn.k) or {})
    assert floors_of(planned) == found and not calls
    floors_of(plan(asked(images, knn__k=[3])))
    assert calls == [(3,)]


def test_there_are_none_without_a_knn_or_of_too_many_images(images, monkeypatch):
    assert floors_of(plan(asked(images, knn=None))) == {}
    monkeypatch.setattr(floors, "MOST", 35)
    assert floors_of(plan(asked(images))) == {}


def test_the_table_has_a_row_of_each_under_the_random_network():
    results, _ = made_results(("carp", "byol"), (0,))
    header, without = lines_of(results)
    results["floors"] = {"pixels": {"20": [81.1, 98.0]}, "centred_pixels": {"20": [83.14, 99.0]}}
    _, lines = lines_of(results)
    assert [line[0] for line in lines[len(without) :]] == list(ROWS) and lines[
        : len(without)
    ] == without
    for line, value in zip(lines[-2:], ("81.10", "83.14")):
        cells = dict(zip(header, line))
        assert {cells[name] for name in header if name.startswith("k-NN")} == {value}
        assert {cells[name] for name in header if name.startswith("linear")} == {""}
    assert "| raw pixels, centred |  | 83.14 |" in markdown(results)
    assert lines_of_floors(results, ["knn/student"], headline_k=7) == []
