"""`python main_evaluate.py --datasets`: several data sets, one table, features once for each; what mistakes earn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carp_plugin.commands.entries import EVALUATE
from carp_plugin.commands.evaluate import evaluate
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.commands.transfer import with_classes
from carp_plugin.data.loaders import evaluation_transform, whole_transform
from carp_plugin.evaluation.shape import Result
from carp_plugin.settings.parts import Size
from carp_plugin.settings.trained import TrainedView
from tests.data.made_idx import write_idx
from tests.data.test_transfer import folders, pets
from tests.helpers import image_folder, small_settings
from tests.run_cli import run_cli


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a pretraining of one epoch, whose images are gone since."""
    images = image_folder(tmp_path_factory.mktemp("images"))
    folder = tmp_path_factory.mktemp("carp")
    off = {"evaluation": {"enabled": False}, "checkpoint__dir": str(folder)}
    made = Path(pretrain(small_settings(images, "carp", max_epochs=1, **off))["checkpoint"]).parent
    images.rename(images.with_name("gone"))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    pets(root, None)
    write_idx(root / "MNIST" / "raw")
    image_folder(root / "mine", per_class=2, size=40)
    return root


def test_several_data_sets_are_one_table(run, root, capsys, monkeypatch, tmp_path):
    names = ["oxford_iiit_pet", "mnist", f"mine={root / 'mine'}"]
    arguments = ["--pretrained_checkpoint_dir", str(run), "--datasets", *names]
    arguments += ["--data_root", str(root), "--json", str(tmp_path / "found.json")]
    code, out, err = run_cli(capsys, monkeypatch, "main_evaluate.py", arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["datasets"]) == ["oxford_iiit_pet", "mnist", "mine"]
    assert not found["protocols"] and found["train_images"] is None
    assert "Resize(size=16" in found["transform_of_others"]
    for name, one in found["datasets"].items():
        assert one["passes"] == {"train": 1, "val": 1} and name in out
        for protocol in ("knn", "logistic"):
            results = one["protocols"][protocol]["results"]
            assert list(results) == ["student/backbone", "teacher/backbone"]
            for result in results.values():
                assert 0 <= result["scores"]["mean per class"]["value"] <= 100
    sizes = [(one["train_images"], one["test_images"]) for one in found["datasets"].values()]
    assert sizes == [(4, 2), (20, 10), (12, 12)]
    assert found["datasets"]["oxford_iiit_pet"]["measure_of_papers"] == "mean per class"
    assert out.count("mean per class *") == 2 and "│ mean per class " in out  # of two protocols


def test_a_folder_has_the_number_that_its_paths_have(run, root):
    """The same images as --datasets and as --train_data_path, both at 16 pixels of images of 16."""
    mine = image_folder(root / "same", per_class=2, size=16)
    both = ["--pretrained_checkpoint_dir", str(run), "--protocols", "knn", "--knn.k", "5"]
    paths = ["--train_data_path", str(mine / "train"), "--val_data_path", str(mine / "val")]
    theirs = evaluate(EVALUATE.read([*both, *paths]))["protocols"]["knn"]["results"]
    found = evaluate(EVALUATE.read([*both, "--datasets", f"mine={mine}"]))["datasets"]["mine"]
    ours = found["protocols"]["knn"]["results"]
    for column, result in theirs.items():
        mean = ours[column]["scores"].pop("mean per class")
        assert ours[column] == result
        assert mean["value"] == pytest.approx(result["scores"]["top1 (k = 5)"]["value"])


def test_mean_per_class_weighs_classes_alike():
    hits = np.array([True, True, False, True, False])
    result = with_classes(Result({"top1": 60.0}, {"top1": hits}), np.array([0, 0, 0, 1, 2]))
    assert result.scores["mean per class"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert result.interval("mean per class") is None
    other = Result({"NMI": 3.0})
    assert with_classes(other, np.array([0])) is other


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "custom"])
def test_large_images_are_seen_whole(dataset):
    """A photograph whose middle square is white on its left, and so is what is seen."""
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:, 50:200] = 255  # the left half of the middle square
    size = Size(resize=None, crop_size=20) if dataset == "custom" else None
    seen = whole_transform(dataset, size, TrainedView())(Image.fromarray(pixels))
    assert seen.shape[1] == seen.shape[2]
    half = seen.shape[2] // 2
    low, high = float(seen[0, :, half + 2 :].max()), float(seen[0, :, : half - 2].min())
    assert low < 0 < high


def test_images_of_the_networks_size_are_left_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for size in (None, Size(resize=None, crop_size=32)):
        both = (f("cifar10", size, TrainedView()) for f in (whole_transform, evaluation_transform))
        assert torch.equal(*(transform(image) for transform in both))


MISTAKES = [
    (["--datasets", "flower102"], "--datasets flower102 is unknown; did you mean 'flowers102'"),
    (["--datasets", "dtd"], "--datasets dtd needs --data_root PATH"),
    (["--datasets", "dtd", "--data_root", "gone"], "dtd: gone/dtd is not there"),
    (["--datasets", "mine="], "--datasets mine= must be NAME=PATH, or a name alone."),
    (["--datasets", "mine=gone"], "--datasets gone: expected the folders gone/train"),
    (["--datasets", "a=b", "a=c"], "--datasets names a twice"),
    (["--download"], "--download is for --datasets NAME, which is not given."),
    (["--data_root", "x"], "--data_root is for --datasets NAME, which is not given."),
]


@pytest.mark.parametrize("given, said", MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_earns_one_sentence(given, said, run, capsys, monkeypatch):
    arguments = ["--pretrained_checkpoint_dir", str(run), *given]
    code, _, err = run_cli(capsys, monkeypatch, "main_evaluate.py", arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err


def test_a_protocols_complaint_names_the_data_set(run, tmp_path, capsys, monkeypatch):
    arguments = ["--pretrained_checkpoint_dir", str(run), "--protocols", "knn", "--knn.k", "100"]
    arguments += ["--datasets", f"mine={folders(tmp_path)}"]
    code, _, err = run_cli(capsys, monkeypatch, "main_evaluate.py", arguments)
    assert code == 2 and "error: mine: --knn.k 100 is larger than the bank of 6" in err


@pytest.mark.parametrize("kinds, count", [(("a",), 3), (("a", "b", "c"), 1)])
def test_one_class_and_one_image_a_class_have_true_numbers(run, kinds, count, tmp_path):
    root = folders(tmp_path, kinds=kinds)
    for path in root.rglob("*.png"):
        if int(path.stem) >= count:
            path.unlink()
    flags = ["--pretrained_checkpoint_dir", str(run), "--datasets", f"mine={root}"]
    found = evaluate(EVALUATE.read(flags))["datasets"]["mine"]
    text = json.dumps(found, allow_nan=False)
    assert found["classes"] == len(kinds) and "NaN" not in text
    for protocol in found["protocols"].values():
        for result in protocol["results"].values():
            first = next(iter(result["scores"].values()))["value"]
            assert first == 100  # training and validation images are the same
