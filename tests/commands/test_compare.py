"""main_compare.py as a user types it: results, page, mistakes, failed runs, and three kills that change no number."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.compare.configs import comparison
from tests.helpers import image_folder
from tests.run_cli import ROOT, run_cli

#: What differs between two runs that did the same.
_TIMES = {"seconds", "train_seconds", "images_per_second", "peak_memory_mb"}
_PLACES = {"checkpoint", "command", "dir", "correct", "gallery", "date"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=8)


def written(folder, cfg, name="tiny"):
    """A configuration folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(cfg))
    return folder


def started(configs, *overrides):
    """The comparison as a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "main_compare.py"),
            "--config-path",
            str(configs),
            "--config-name",
            "tiny",
            *overrides,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )


def numbers(tree):
    """A tree of results without times and places."""
    if isinstance(tree, dict):
        return {k: numbers(v) for k, v in tree.items() if k not in _TIMES | _PLACES}
    return [numbers(value) for value in tree] if isinstance(tree, list) else tree


def workers(folder):
    """Processes that do a run of the comparison whose results go to a folder."""
    found = subprocess.run(
        ["pgrep", "-f", f"carp_plugin.commands.worker {folder}/runs"], capture_output=True
    )
    return found.stdout.split()


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    """An unbroken comparison with a linear evaluation: its folder, its results and what it printed."""
    folder = tmp_path_factory.mktemp("unbroken")
    configs = written(folder / "configs", whole(images))
    process = started(configs, f"dir={folder / 'results'}")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return folder / "results", json.loads((folder / "results" / "results.json").read_text()), output


def whole(images):
    linear = {
        "network": "student",
        "pretrained_feature_extractor": "???",
        "data": {
            "num_workers": 0,
            "format": "image_folder",
            "train_transform": {"crop_size": 16, "scale": [0.5, 1.0]},
        },
        "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.3, "weight_decay": 0},
        "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0, "min_lr": 0.0},
        "max_epochs": 2,
    }
    protocols = ["logistic", "clustering", "retrieval", "copies"]
    cfg = comparison(images, linear=linear, protocols=protocols, logistic__C=[1.0])
    cfg.linear = linear
    cfg.finetune = {
        **{key: linear[key] for key in ("data", "max_epochs")},
        "optimizer": {"batch_size": 8, "lr": 0.01, "classifier_lr": 0.5},
        "labels": {"fraction": 0.5},
        "scheduler": {"lr_decay_steps": [1]},
    }
    return cfg


def test_results_hold_every_measurement(unbroken):
    folder, results, output = unbroken
    carp, simsiam = results["runs"]
    assert [run["status"] for run in (carp, simsiam)] == ["ok", "ok"], output
    assert set(carp["accuracy"]) == {"random", "student", "teacher", "labels alone"}
    assert set(simsiam["accuracy"]) == {"random", "student"}
    for run in (carp, simsiam):
        knn = run["accuracy"]["student"]["knn"]
        assert set(knn) == {"backbone", "projector"} and set(knn["backbone"]) == {"1", "5"}
        assert run["steps"] == 48 // 8 and run["images_per_second"] > 0
        assert run["peak_memory_mb"] > 50 and run["config"]["seed"] == 0
        assert set(run["accuracy"]["student"]["linear"]) >= {
            "top1",
            "top5",
            "best_top1",
            "best_epoch",
        }
    assert results["data"]["train_images"] == 48 and results["data"]["classes"] == 6
    assert results["versions"]["torch"] and results["host"]["version"]


def test_accuracies_are_the_mean_of_the_images_they_are_of(unbroken):
    folder, results, _ = unbroken
    for run in results["runs"]:
        with np.load(folder / run["correct"]) as correct:
            for k, (top1, _) in run["accuracy"]["student"]["knn"]["backbone"].items():
                assert correct[f"knn/student/{k}"].mean() * 100 == pytest.approx(top1)
            logistic = run["accuracy"]["student"]["logistic"]
            assert logistic["C"] == 1.0 and logistic["headline"] == "top1"
            top1 = logistic["scores"]["top1"]["value"]
            assert correct["logistic/student"].mean() * 100 == pytest.approx(top1)
            for name in ("clustering", "retrieval", "copies"):
                found = run["accuracy"]["student"][name]
                value = found["scores"][found["headline"]]["value"]
                assert correct[f"{name}/student"].mean() * 100 == pytest.approx(value)
                prototypes = "AMI, blocks (prototypes)" in found["scores"]
                assert prototypes == (name == "clustering" and run["method"] == "carp")
            tuned = run["accuracy"]["student"]["finetune"]["top1"]
            assert correct["finetune/student"].mean() * 100 == pytest.approx(tuned, abs=1e-3)
            linear = run["accuracy"]["student"]["linear"]["top1"]
            assert correct["linear/student"].mean() * 100 == pytest.approx(linear, abs=1e-3)


def test_page_table_and_gallery_stand(unbroken):
    folder, results, output = unbroken
    page = (folder / "index.html").read_text()
    assert "simsiam" in page and "data:image/png;base64" in page and "<svg" in page
    assert "| carp |" in (folder / "table.md").read_text()
    assert "logistic regression, student" in (folder / "table.md").read_text()
    assert "supervised (labels alone)" in page
    for name in ("fine-tuned", "logistic regression", "clustering (accuracy)", "retrieval (mAP)"):
        assert f"{name}, student" in page
    assert (folder / results["runs"][0]["gallery"]).is_file() and results["runs"][1][
        "gallery"
    ] is None
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == ["bars.png", "early-training.png", "knn-curves.png"]
    assert "index.html" in output and "results.json" in output


def test_no_path_of_this_machine_is_in_the_results_but_those_given(unbroken):
    folder, results, _ = unbroken
    assert "location" not in results["host"]
    assert all("location" not in run["provenance"]["host"] for run in results["runs"])


def test_finished_runs_are_not_repeated(images, unbroken):
    folder, results, _ = unbroken
    process = started(written(folder.parent / "again", whole(images)), f"dir={folder}")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "2 of 2 runs are finished already" in output
    again = json.loads((folder / "results.json").read_text())
    assert numbers(again) == numbers(results)


def test_other_settings_do_not_mix_with_what_stands(images, unbroken, capsys, monkeypatch):
    folder, _, _ = unbroken
    configs = written(folder.parent / "other", whole(images))
    arguments = ["--config-path", str(configs), "--config-name", "tiny", f"dir={folder}"]
    code, _, err = run_cli(capsys, monkeypatch, "main_compare.py", [*arguments, "max_epochs=2"])
    assert code == 2 and err.count("\n") == 1
    assert "was made with other settings (settings.pretrain.max_epochs was 1, now 2)" in err


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_numbers(images, unbroken, tmp_path):
    """SIGKILL at random moments of two runs at a time, then to the end."""
    configs, folder = written(tmp_path / "configs", whole(images)), tmp_path / "results"
    chance = random.Random(0)
    for _ in range(3):
        process = started(configs, "jobs=2", f"dir={folder}")
        while not workers(folder) and process.poll() is None:
            time.sleep(0.2)
        try:
            output = process.communicate(timeout=chance.uniform(4, 20))[0]
            assert process.returncode == 0, output  # it was faster than the kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            deadline = time.time() + 10
            while workers(folder) and time.time() < deadline:
                time.sleep(0.2)
            assert not workers(folder), "a run went on without its comparison"
    process = started(configs, f"dir={folder}")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    results = json.loads((folder / "results.json").read_text())
    expected = numbers(unbroken[1])
    for key in ("runs", "summary", "data", "protocol"):
        assert numbers(results)[key] == expected[key], key


@pytest.mark.slow
def test_ctrl_c_ends_every_run_and_says_what_is_left(images, tmp_path):
    folder = tmp_path / "results"
    process = started(written(tmp_path / "configs", whole(images)), f"dir={folder}")
    deadline = time.time() + 120
    while not workers(folder) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert output.splitlines()[-1] == (
        "interrupted; 0 of 2 runs are finished, the same command does the rest."
    )
    assert not workers(folder)


def test_a_full_disk_is_one_sentence(images, capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("carp_plugin.compare.runner.write_json", full)
    configs = written(tmp_path / "configs", comparison(images))
    given = ["--config-path", str(configs), "--config-name", "tiny"]
    code, _, err = run_cli(capsys, monkeypatch, "main_compare.py", given)
    assert code == 2 and err.count("\n") == 1
    assert "results/tiny cannot be written to (No space left on device); make room" in err


@pytest.mark.slow
def test_a_failed_run_is_a_row_that_says_so(images, tmp_path):
    """The method's own mistake: whitening of more features than the batch has images."""
    cfg = comparison(images, methods=["simsiam", "wmse"], knn=None, gallery=None)
    cfg.knn = None
    cfg.settings.wmse.method_kwargs.whitening_size = 64
    process = started(written(tmp_path / "configs", cfg))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    results = json.loads((tmp_path / "results" / "tiny" / "results.json").read_text())
    status = {run["label"]: run["status"] for run in results["runs"]}
    assert status == {"simsiam": "ok", "wmse": "failed"}
    assert "wmse-seed0: failed: " in output and "Traceback" not in output
    assert "wmse" in (tmp_path / "results" / "tiny" / "index.html").read_text()


MISTAKES = {
    "typo in a key of its own": (
        ["metods=[carp]"],
        "metods is not a key of the configuration; did you mean 'methods'",
    ),
    "one method for all": (
        ["method=[carp]"],
        "method is not a key of a comparison, which has a list of them; give methods=[carp,byol]",
    ),
    "one seed for all": (
        ["seed=3"],
        "seed is not a key of a comparison, which has a list of them; give seeds=[0,1]",
    ),
    "unknown method": (["methods=[carp,byoll]"], "methods: byoll is unknown; did you mean 'byol'"),
    "missing data": (["data.train_path=nowhere"], "data.train_path=nowhere does not exist"),
    "a file in the way": (["dir=configs/tiny.yaml"], "dir=configs/tiny.yaml cannot be written to"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(images, capsys, monkeypatch, tmp_path, mistake):
    arguments, sentence = MISTAKES[mistake]
    configs = written(tmp_path / "configs", comparison(images))
    given = ["--config-path", str(configs), "--config-name", "tiny", *arguments]
    code, _, err = run_cli(capsys, monkeypatch, "main_compare.py", given)
    assert code == 2 and sentence in err and err.count("\n") == 1
