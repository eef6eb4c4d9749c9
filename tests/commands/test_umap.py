"""`python main_umap.py`: pictures and coordinates of a checkpoint's features, with umap-learn and without it."""

import sys
import types

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch.utils.data import DataLoader

from carp_plugin.commands.umap import SPLITS, Projection, class_names, main_umap, picture, project
from carp_plugin.data.loaders import NamesBadImages, labelled_loaders
from carp_plugin.errors import UserError
from carp_plugin.evaluation import store
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.drawing import PALETTE, colours, write_pdf, write_png
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint
from tests.run_cli import run_cli


class FirstTwo:
    """Stands for umap.UMAP: its map is the first two features. What it was given is kept for the test."""

    def __init__(self, **settings):
        self.settings = settings
        FirstTwo.last = self

    def fit_transform(self, rows):
        self.rows = rows
        return rows[:, :2].astype(np.float64)


@pytest.fixture
def stub(monkeypatch):
    module = types.ModuleType("umap")
    module.UMAP = FirstTwo
    monkeypatch.setitem(sys.modules, "umap", module)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, images):
    """method -> its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_checkpoint(folder / name, images, name) for name in ("byol", "simsiam")}


def flags_of(checkpoint, *flags):
    return ["--pretrained_checkpoint_dir", str(checkpoint), *map(str, flags)]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("umap"))


def files_of(*names):
    return sorted(f"{name}.{ending}" for name in names for ending in ("npz", "pdf", "png"))


def test_student_and_teacher_are_drawn_beside_the_checkpoint(
    stub, checkpoints, capsys, monkeypatch
):
    code, out, err = run_cli(capsys, monkeypatch, "main_umap.py", flags_of(checkpoints["byol"]))
    assert code == 0, err
    folder = checkpoints["byol"].parent
    names = [f"umap_{who}_{split}" for who in ("student", "teacher") for split in ("train", "val")]
    assert names_in(folder) == files_of(*names)
    assert all(f"{name} .png .pdf .npz" in out for name in names) and f"written to {folder}" in out
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert image.width >= 700
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_coordinates_are_those_of_the_networks_own_features(stub, checkpoints, tmp_path):
    flags = ["--networks", "teacher", "--feature_type", "projector", "backbone"]
    written = main_umap(flags_of(checkpoints["byol"], *flags, "--out", "a/b"))
    names = [f"umap_{who}_{split}" for who in ("teacher", "teacher_projector") for split in SPLITS]
    assert names_in(tmp_path / "a/b") == files_of(*names) == sorted(path.name for path in written)
    pretrained = load_pretrained(checkpoints["byol"])
    for kind, part in (("backbone", ""), ("projector", "_projector")):
        for split, loader in zip(SPLITS, labelled_loaders(pretrained.cfg)):
            network = pretrained.network("teacher", kind)
            found = store.extract(network, loader, torch.device("cpu"))
            unit = torch.nn.functional.normalize(found.feats)
            with np.load(tmp_path / f"a/b/umap_teacher{part}_{split}.npz") as saved:
                assert sorted(saved) == ["coordinates", "labels"]
                assert saved["coordinates"].dtype == np.float32
                assert np.allclose(saved["coordinates"], unit[:, :2], atol=1e-3)
                assert saved["labels"].tolist() == found.targets.tolist()


def test_the_same_command_writes_the_same_bytes(stub, checkpoints, tmp_path):
    for out in ("a", "b"):
        main_umap(flags_of(checkpoints["simsiam"], "--out", out))
    for name in files_of("umap_student_train", "umap_student_val"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


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
    assert class_names(loader, some) == ["0", "1", "2", "3"]


def said_by(capsys, monkeypatch, checkpoint, *flags):
    """The one sentence that a mistake earns."""
    arguments = flags_of(checkpoint, *flags)
    code, out, err = run_cli(capsys, monkeypatch, "main_umap.py", arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in out + err
    return line


MISTAKES = [
    (["--seed", "-1"], "--seed must lie between 0 and 4294967295, got -1"),
    (["--seed", "4294967296"], "--seed must lie between 0 and 4294967295, got 4294967296"),
    (["--sed", "1"], "--sed is not a flag of main_umap.py; did you mean '--seed'?"),
    (["--networks", "teacher"], "simsiam has no teacher; it has student"),
    (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
    (["--val_data_path", "gone"], "--val_data_path gone does not exist"),
    (["--out", "file"], "cannot be written to file (File exists); give a folder as --out"),
    (["--out", "file/below"], "cannot be written to file/below (Not a directory)"),
]


@pytest.mark.parametrize("flags, says", MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_earns_one_sentence(
    flags, says, stub, checkpoints, capsys, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], *flags)
    assert says in line


@pytest.fixture
def no_features(monkeypatch):
    """No feature is computed within the test."""

    def refuse(*_, **__):
        raise AssertionError("features were computed")

    monkeypatch.setattr("carp_plugin.commands.umap.stream", refuse)


def test_without_umap_learn_the_command_to_install_it_is_said_before_features_are_computed(
    no_features, checkpoints, capsys, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], "--out", "made")
    assert "run `pip install carp-plugin[umap]`" in line
    assert not (tmp_path / "made").exists()


def test_another_package_of_that_name_is_not_it(checkpoints, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"])
    assert "cannot import name 'UMAP'" in line and "pip install carp-plugin[umap]" in line


def test_too_few_images_are_refused_before_features_are_computed(
    stub, no_features, checkpoints, tmp_path, capsys, monkeypatch
):
    few = image_folder(tmp_path / "few", per_class=1, classes=2)
    both = ["--train_data_path", few / "train", "--val_data_path", few / "val"]
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], *both, "--out", "made")
    assert f"--train_data_path {few / 'train'} holds 2 images, and UMAP needs at least 3" in line
    assert not (tmp_path / "made").exists()


def test_a_folder_without_the_right_to_write_is_refused_before_features_are_computed(
    stub, no_features, checkpoints, capsys, monkeypatch
):
    monkeypatch.setattr("carp_plugin.commands.umap.os.access", lambda *_: False)
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], "--out", "here")
    assert "the folder here cannot be written to; give another one as --out" in line


def test_a_full_disk_is_said(stub, checkpoints, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("carp_plugin.commands.umap.write_pdf", full)
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], "--out", "here")
    assert "cannot be written to here (No space left on device); give a folder as --out" in line


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
