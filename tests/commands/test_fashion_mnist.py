"""Fashion-MNIST from a pretraining to its evaluation: the images that were drawn are those that are evaluated on."""

import json
from pathlib import Path

import pytest

from carp_plugin.commands.knn import knn
from carp_plugin.commands.linear import linear
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.data import idx
from carp_plugin.settings.linear import read_linear
from carp_plugin.settings.offline import Knn
from carp_plugin.settings.reading import plain
from tests.data.made_idx import write_idx
from tests.helpers import small_settings
from tests.linear_helpers import linear_cfg
from tests.run_cli import run_cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("idx") / "files", zipped=True, train=60, test=30)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The summary of a run on 40 images of 60."""
    return pretrain(settings_of(folder, tmp_path_factory.mktemp("run")))


def settings_of(folder, run, **changes):
    return small_settings(
        folder,
        **{
            "data__dataset": "fashion_mnist",
            "data__train_path": str(folder),
            "data__val_path": str(folder),
            "data__train_images": 40,
            "data__val_images": 20,
            "data__eval_transform": {"crop_size": 28},
            "checkpoint__dir": str(run),
            "auto_resume__enabled": True,
            "max_epochs": 1,
            **changes,
        },
    )


def test_a_run_says_by_name_and_hash_what_it_was_trained_on(trained):
    assert trained["plan"]["images"] == 40 and trained["plan"]["classes"] == 10
    train, val = (trained["subsets"][part] for part in ("train", "val"))
    assert (train["images"], train["of"], train["name"]) == (40, 60, "40 drawn by seed 0")
    assert train["images_a_class"] == [4, 4] and val["images"] == 20
    args = json.loads(Path(trained["checkpoint"]).with_name("args.json").read_text())
    assert args["data"]["dataset"] == "fashion_mnist" and args["data"]["num_classes"] == 10


def test_a_run_goes_on_wherever_the_set_lies_and_not_with_other_images(
    trained, folder, tmp_path, capsys
):
    run = Path(trained["checkpoint"]).parents[2]
    moved = write_idx(tmp_path / "moved", train=60, test=30)
    other = {"data__train_path": str(moved), "data__val_path": str(moved)}
    capsys.readouterr()
    pretrain(settings_of(folder, run, **other))
    assert "resuming from" in capsys.readouterr().out
    pretrain(settings_of(folder, run, data__subset_seed=1))
    assert "not resumed" in capsys.readouterr().out


def test_a_checkpoint_is_evaluated_on_the_images_that_were_drawn(trained, folder, tmp_path):
    run = str(Path(trained["checkpoint"]).parent)
    asked = {"pretrained_checkpoint_dir": run, "k": (5,), "json_file": str(tmp_path / "knn.json")}
    found = knn(Knn(**asked))
    assert (found["bank_images"], found["query_images"]) == (40, 20)
    assert found["subsets"] == trained["subsets"]
    (row,) = (
        r for r in found["results"] if (r["network"], r["features"]) == ("student", "backbone")
    )
    student = next(r for r in trained["accuracy"] if r["features"].startswith("student"))
    assert row["top1"] == pytest.approx(student["knn"], abs=5.0)  # half precision, of 20 images
    elsewhere = {"train_data_path": str(folder), "val_data_path": str(folder)}
    found = knn(Knn(**asked, **elsewhere))
    assert (found["bank_images"], found["query_images"], found["subsets"]) == (60, 30, {})
    found = knn(Knn(**asked, **elsewhere, train_images=30))
    assert (found["bank_images"], found["query_images"]) == (30, 30)


def test_a_linear_layer_is_trained_on_a_draw_of_its_own(trained, folder):
    cfg = plain(linear_cfg(folder, Path(trained["checkpoint"])))
    paths = {"train_path": str(folder), "val_path": str(folder)}
    cfg["data"].update(dataset="fashion_mnist", train_images=20, subset_seed=3, **paths)
    done = linear(read_linear(cfg))
    assert done["images"] == {"train": 20, "val": 30} and done["classes"] == 10
    assert done["subsets"]["train"]["name"] == "20 drawn by seed 3"


def test_where_it_is_missing_the_command_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "share")
    arguments = ["--config-path", "scripts/pretrain/fashion_mnist", "--config-name", "carp.yaml"]
    code, _, err = run_cli(capsys, monkeypatch, "main_pretrain.py", arguments)
    assert code == 2 and len(err.splitlines()) == 1
    assert "apt-get install dataset-fashion-mnist" in err and "data.prepare=download" in err
