"""Features in two dimensions: what UMAP is given, and what a picture shows; with umap-learn and without it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch.utils.data import DataLoader

from carp_plugin.data.loaders import NamesBadImages
from carp_plugin.errors import UserError
from carp_plugin.evaluation import store
from carp_plugin.evaluation.drawing import PALETTE, colours, write_pdf, write_png
from carp_plugin.evaluation.umap import Projection, picture, project
from tests.evaluation.reducer import FirstTwo


@pytest.mark.parametrize("rows, neighbours", [(3, 2), (15, 14), (16, 15), (40, 15)])
def test_neighbours_are_fifteen_or_all_others(rows, neighbours):
    feats = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    found = project(store.Features(feats.half(), torch.zeros(rows).long()), FirstTwo, seed=7)
    settings = FirstTwo.last.settings
    assert (settings["n_neighbors"], settings["n_components"]) == (neighbours, 2)
    assert settings["random_state"] == 7
    assert FirstTwo.last.rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(FirstTwo.last.rows, axis=1), 1, atol=1e-6)
    assert found.shape == (rows, 2) and found.dtype == np.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_has_nothing_to_draw(value):
    feats = torch.ones(5, 4)
    feats[2, 1] = value
    with pytest.raises(UserError, match="not finite"):
        project(store.Features(feats, torch.zeros(5).long()), FirstTwo, seed=0)


def test_two_rows_are_too_few():
    with pytest.raises(ValueError, match="at least 3 rows, got 2"):
        project(store.Features(torch.eye(2), torch.tensor([0, 1])), FirstTwo, seed=0)


def drawn(labels, classes, **changes):
    labels = np.asarray(labels)
    coordinates = np.stack([np.arange(len(labels)), labels], axis=1).astype(np.float32)
    given = {"network": "student", "features": "backbone", "split": "val", **changes}
    return picture(Projection(coordinates=coordinates, labels=labels, **given), "carp", classes)


def test_every_dot_has_the_colour_of_its_class_and_the_legend_says_so():
    classes = ["cat", "_dog", "cow"]
    found = drawn([0, 0, 1, 1, 1, 2], classes)
    (axes,), (legend,) = found.figure.axes, found.figure.legends
    (dots,) = axes.collections
    # The stub's second coordinate is the class, whatever the order in which dots are drawn.
    hues = [to_hex(colour) for colour in dots.get_facecolors()]
    assert hues == [PALETTE[int(label)] for label in dots.get_offsets()[:, 1]]
    assert sorted(dots.get_offsets()[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert [text.get_text().strip() for text in legend.get_texts()] == classes
    assert [handle.get_color() for handle in legend.legend_handles] == list(PALETTE[:3])
    assert axes.get_title() == "carp, student: 6 validation images"
    assert found.name == "umap_student_val" and "3 classes" in found.alt


def test_a_class_without_images_keeps_the_colours_of_the_others():
    (axes,) = drawn([2, 2, 2], ["a", "b", "c"], split="train").figure.axes
    assert {to_hex(colour) for colour in axes.collections[0].get_facecolors()} == {PALETTE[2]}
    assert axes.get_title() == "carp, student: 3 training images"


@pytest.mark.parametrize("classes, legends", [(20, 1), (21, 0)])
def test_more_than_twenty_classes_have_no_legend(classes, legends):
    found = drawn(range(classes), [f"class {i}" for i in range(classes)], features="projector")
    assert len(found.figure.legends) == legends
    assert found.figure.axes[0].get_title().startswith("carp, student projector: ")
    hues = {to_hex(colour) for colour in found.figure.axes[0].collections[0].get_facecolors()}
    assert len(hues) == classes


def test_many_dots_are_pixels_in_a_small_pdf(tmp_path):
    found = drawn(np.arange(20_001) % 3, ["a", "b", "c"])
    assert found.figure.axes[0].collections[0].get_rasterized()
    assert write_pdf(found, tmp_path).stat().st_size < 200_000
    assert not drawn([0, 1], ["a", "b"]).figure.axes[0].collections[0].get_rasterized()


def test_names_of_classes_are_text_whatever_they_hold(tmp_path):
    found = drawn([0, 1, 2], ["$\\frac{", "漢字", "n" * 300])
    assert write_png(found, tmp_path).stat().st_size < 200_000
    assert write_pdf(found, tmp_path).read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("count", [0, 1, 6, 7, 20, 100, 1000])
def test_every_class_has_a_colour_of_its_own(count):
    found = colours(count)
    assert len(set(found)) == len(found) == count
    assert found[:6] == list(PALETTE[:count]) if count <= 6 else found[0] not in PALETTE


def test_classes_without_names_are_numbers():
    loader = DataLoader(NamesBadImages([0]))
    some = [store.Features(torch.ones(2, 1), torch.tensor(labels)) for labels in ([0, 1], [3, 0])]
    assert store.class_names(loader, [rows.targets for rows in some]) == ["0", "1", "2", "3"]


def test_umap_itself_separates_what_is_apart_and_takes_three_images(tmp_path):
    umap = pytest.importorskip("umap", reason="umap-learn is not installed (extra umap)")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    feats = torch.eye(3, 8)[labels] + 0.01 * torch.randn(60, 8, generator=generator)
    rows = store.Features(feats.half(), labels)
    found = project(rows, umap.UMAP, seed=0)
    assert np.array_equal(found, project(rows, umap.UMAP, seed=0))
    assert found.shape == (60, 2) and found.dtype == np.float32
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(labels[distances.argmin(axis=1)], labels)  # nearest is of the same class
    tiny = store.Features(rows.feats[:3], labels[:3])
    assert np.isfinite(project(tiny, umap.UMAP, seed=0)).all()
