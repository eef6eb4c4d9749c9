"""`python main_umap.py`: pictures and coordinates of a checkpoint's features, and what mistakes earn."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carp_plugin.commands.entries import UMAP
from carp_plugin.commands.umap import umap
from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.evaluation import store
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.umap import SPLITS
from tests.evaluation.reducer import FirstTwo
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint
from tests.run_cli import run_cli


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
    written = umap(UMAP.read(flags_of(checkpoints["byol"], *flags, "--out", "a/b")))
    names = [f"umap_{who}_{split}" for who in ("teacher", "teacher_projector") for split in SPLITS]
    assert names_in(tmp_path / "a/b") == files_of(*names) == sorted(path.name for path in written)
    pretrained = load_pretrained(checkpoints["byol"])
    trained = pretrained.trained
    loaders = labelled_loaders(trained.data, trained.view, trained.optimizer.batch_size)
    for kind, part in (("backbone", ""), ("projector", "_projector")):
        for split, loader in zip(SPLITS, loaders):
            network = pretrained.network("teacher", kind)
            found = store.extract(network, loader, torch.device("cpu"))
            unit = torch.nn.functional.normalize(found.feats)
            with np.load(tmp_path / f"a/b/umap_teacher{part}_{split}.npz") as saved:
                assert sorted(saved) == ["classes", "coordinates", "labels", "paths"]
                names = [Path(path).parent.name for path in saved["paths"]]
                assert names == [saved["classes"][label] for label in saved["labels"]]
                assert saved["coordinates"].dtype == np.float32
                assert np.allclose(saved["coordinates"], unit[:, :2], atol=1e-3)
                assert saved["labels"].tolist() == found.targets.tolist()


def test_the_same_command_writes_the_same_bytes(stub, checkpoints, tmp_path):
    for out in ("a", "b"):
        umap(UMAP.read(flags_of(checkpoints["simsiam"], "--out", out)))
    for name in files_of("umap_student_train", "umap_student_val"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def said_by(capsys, monkeypatch, checkpoint, *flags):
    """The one sentence that a mistake earns."""
    arguments = flags_of(checkpoint, *flags)
    code, out, err = run_cli(capsys, monkeypatch, "main_umap.py", arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in out + err
    return line


MISTAKES = [
    (["--seed", "-1"], "--seed must be a whole number between 0 and 4294967295, got -1"),
    (
        ["--seed", "4294967296"],
        "--seed must be a whole number between 0 and 4294967295, got 4294967296",
    ),
    (["--sed", "1"], "--sed is not a flag of main_umap.py; did you mean '--seed'?"),
    (["--networks", "teacher"], "simsiam has no teacher; it has student"),
    (["--batch_size", "0"], "--batch_size must be a whole number of at least 1, got 0"),
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

    monkeypatch.setattr("carp_plugin.evaluation.umap.write_pdf", full)
    line = said_by(capsys, monkeypatch, checkpoints["simsiam"], "--out", "here")
    assert "cannot be written to here (No space left on device); give a folder as --out" in line
