"""`python main_knn.py`: checkpoints of tiny pretrainings to the table and the JSON line, and what mistakes earn."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from carp_plugin.commands.entries import KNN
from carp_plugin.commands.knn import knn
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.features import extract
from carp_plugin.evaluation.offline import with_flags
from carp_plugin.evaluation.protocols.knn import weighted_knn
from carp_plugin.host import HOST, WeightedKNNClassifier
from tests.helpers import image_folder, small_settings
from tests.run_cli import run_cli

NETWORKS = {
    "barlow_twins": ["student"],
    "byol": ["student", "teacher"],
    "carp": ["student", "teacher"],
    "simsiam": ["student"],
    "swav": ["student"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, images):
    """method -> the folder of a pretraining of one epoch, made once."""
    made = {}

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            off = {"evaluation": {"enabled": False}, "checkpoint__dir": str(folder)}
            summary = pretrain(small_settings(images, method, max_epochs=1, **off))
            made[method] = Path(summary["checkpoint"]).parent
        return made[method]

    return run


def loaders_of(pretrained):
    """Loaders of the labelled images of a pretraining, as it says itself."""
    trained = pretrained.trained
    return labelled_loaders(trained.data, trained.view, trained.optimizer.batch_size)


@pytest.mark.parametrize("method", sorted(NETWORKS))
def test_every_network_of_a_method_is_evaluated(method, run_of, capsys, monkeypatch):
    arguments = ["--pretrained_checkpoint_dir", str(run_of(method)), "--k", "5", "20"]
    code, out, err = run_cli(capsys, monkeypatch, "main_knn.py", arguments)
    assert code == 0, err
    assert re.search(rf"(\d+) of \1 tensors loaded from \S+ep=0.ckpt \({method}, epoch 0\)", out)
    if method == "swav":
        assert "left out: queue" in out
    (said,) = [line for line in out.splitlines() if line.startswith("written to ")]
    found = json.loads((run_of(method) / "knn.json").read_text())
    assert "{" not in out and str(run_of(method) / "knn.json") in said
    columns = [(n, f) for n in NETWORKS[method] for f in ("backbone", "projector")]
    assert [(r["network"], r["features"], r["k"]) for r in found["results"]] == [
        (*column, k) for column in columns for k in (5, 20)
    ]
    assert all(f"{r['top1']:.2f}" in out and 0 <= r["top1"] <= r["top5"] for r in found["results"])
    assert found["method"] == method and found["host"] == HOST.as_dict()


def test_the_line_defines_the_number(run_of, images, tmp_path):
    (checkpoint,) = run_of("byol").glob("*.ckpt")
    arguments = [
        "--pretrained_checkpoint_dir",
        str(checkpoint),
        "--k",
        "20",
        "--json",
        "a/knn.json",
    ]
    arguments += [
        "--networks",
        "teacher",
        "--feature_type",
        "projector",
        "--temperature",
        "0.1",
        "1",
    ]
    found = knn(KNN.read([*arguments, "--store", "rows"]))
    assert json.loads(Path("a/knn.json").read_text()) == found
    assert found["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    expected = {
        "k": [20],
        "temperature": [0.1, 1.0],
        "distance": "cosine",
        "index": "exact",
        "bank_images": 24,
        "query_images": 24,
        "classes": 6,
        "epoch": 0,
        "train_data_path": str(images / "train"),
        "val_data_path": str(images / "val"),
    }
    assert {key: found[key] for key in expected} == expected
    assert "CenterCrop(size=(16, 16))" in found["transform"] and "float16" in found["feature_dtype"]
    assert [(r["temperature"], r["network"]) for r in found["results"]] == [
        (0.1, "teacher"),
        (1.0, "teacher"),
    ]
    assert {p.name for p in Path("rows").rglob("*.npy")} == {"teacher-projector.npy"}
    named = json.loads(Path("rows/val/images.json").read_text())
    assert named["classes"] == [f"class_{i}" for i in range(6)] and len(named["paths"]) == 24
    folders = [Path(path).parent.name for path in named["paths"]]
    assert folders == [named["classes"][label] for label in named["labels"]]
    in_memory = knn(KNN.read(arguments))
    assert in_memory["results"] == found["results"]


def test_the_number_is_that_of_the_networks_own_features(run_of):
    arguments = ["--pretrained_checkpoint_dir", str(run_of("carp")), "--k", "5"]
    results = knn(KNN.read(arguments))["results"]
    found = {(r["network"], r["features"]): r["top1"] for r in results}
    pretrained = load_pretrained(run_of("carp"))
    for (which, kind), top1 in found.items():
        network = pretrained.network(which, kind)
        bank, queries = (
            extract(network, loader, torch.device("cpu")) for loader in loaders_of(pretrained)
        )
        rounded = [
            f._replace(feats=torch.nn.functional.normalize(f.feats).half()) for f in (bank, queries)
        ]
        assert weighted_knn(*rounded, k=[5]).top1[5] == top1


@pytest.mark.parametrize("kind", ["backbone", "projector"])
def test_in_float32_it_is_the_hosts_classifier(run_of, kind):
    arguments = ["--pretrained_checkpoint_dir", str(run_of("byol")), "--k", "5", "20"]
    arguments += ["--feature_type", kind, "--feature_dtype", "float32"]
    found = knn(KNN.read(arguments))
    pretrained = load_pretrained(run_of("byol"))
    for result in found["results"]:
        network = pretrained.network(result["network"], kind)
        bank, queries = (
            extract(network, loader, torch.device("cpu")) for loader in loaders_of(pretrained)
        )
        host = WeightedKNNClassifier(k=result["k"], T=0.07, distance_fx="cosine")
        host.update(train_features=bank.feats, train_targets=bank.targets)
        host.update(test_features=queries.feats, test_targets=queries.targets)
        assert (result["top1"], result["top5"]) == pytest.approx(host.compute())


def test_flags_go_before_the_pretrainings_settings(run_of, images):
    trained = load_pretrained(run_of("simsiam")).trained
    flags = ["--pretrained_checkpoint_dir", "x", "--batch_size", "3", "--num_workers", "1"]
    flags += ["--dataset", "imagenet", "--val_data_path", "v"]
    changed = with_flags(trained, KNN.read(flags))
    assert (changed.optimizer.batch_size, changed.data.num_workers) == (3, 1)
    assert (changed.data.dataset, changed.data.val_path) == ("imagenet", "v")
    assert changed.data.train_path == str(images / "train") and changed.data.eval_transform is None
    assert trained.optimizer.batch_size == 8 and trained.data.eval_transform.crop_size == 16


MISTAKES = [
    (["--k", "25"], r"--k 25 is larger than the bank of 24 training images"),
    (["--k", "0"], r"--k must be a whole number of at least 1, got 0"),
    (["--k", "many"], r"invalid int value: 'many'"),
    (["--kk", "5"], r"--kk is not a flag of main_knn.py; did you mean '--k'\?"),
    (["--networks", "teacher"], r"simsiam has no teacher; it has student"),
    (["--feature_type", "head"], r"invalid choice: 'head'"),
    (["--temperature", "0"], r"--temperature must be a number above 0, got 0"),
    (["--temperature", "nan"], r"--temperature must be a number above 0, got nan"),
    (["--distance_function", "euclidean"], r"euclidean is not offered"),
    (["--val_data_path", "gone"], r"--val_data_path gone does not exist.*as --val_data_path PATH"),
    (["--device", "tpu"], r"--device tpu is unknown"),
    (["--device", "cuda:99"], r"--device cuda:99 is not there"),
    (["--num_workers", "-1"], r"--num_workers must be a whole number of at least 0, got -1"),
    (["--json", "."], r"--json . is a folder"),
]


@pytest.mark.parametrize("flags, says", MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_earns_one_sentence(flags, says, run_of, capsys, monkeypatch):
    arguments = ["--pretrained_checkpoint_dir", str(run_of("simsiam")), "--k", "5", *flags]
    code, out, err = run_cli(capsys, monkeypatch, "main_knn.py", arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, (out, err)
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in out + err


def test_a_typo_in_the_path_names_what_is_there(run_of):
    near = str(run_of("simsiam"))[:-1]
    with pytest.raises(UserError, match=r"does not exist; did you mean"):
        knn(KNN.read(["--pretrained_checkpoint_dir", near]))


def test_class_folders_that_differ_are_named(run_of, images, tmp_path):
    val = shutil.copytree(images / "val", tmp_path / "val")
    (val / "class_0").rename(val / "cats")
    flags = ["--pretrained_checkpoint_dir", str(run_of("simsiam")), "--val_data_path", str(val)]
    with pytest.raises(UserError, match=r"class folders of --train_data_path .* differ \(cats, cl"):
        knn(KNN.read(flags))


def test_a_default_that_does_not_fit_the_bank_is_left_out_and_said(run_of, capsys):
    found = knn(KNN.read(["--pretrained_checkpoint_dir", str(run_of("simsiam"))]))
    assert found["k"] == [10, 20]
    assert "k = 100, 200 left out: the bank has 24 training images" in capsys.readouterr().out


def test_the_first_five_of_five_classes_are_no_column(run_of, tmp_path, capsys):
    few = image_folder(tmp_path / "few", classes=5)
    both = ["--train_data_path", str(few / "train"), "--val_data_path", str(few / "val")]
    found = knn(
        KNN.read(["--pretrained_checkpoint_dir", str(run_of("simsiam")), "--k", "5", *both])
    )
    out = capsys.readouterr().out
    assert found["classes"] == 5 and "5 classes: top-5 would say nothing" in out
    assert "top-5 " not in out.partition("5 classes")[0]
    assert "5 classes: top-5 would say nothing, and is left out" in found["remarks"]


def test_a_top_five_that_nobody_voted_for_is_questioned_on_the_terminal_and_in_the_record(
    run_of, capsys
):
    flags = ["--pretrained_checkpoint_dir", str(run_of("simsiam")), "--k", "4"]
    found = knn(KNN.read(flags))
    out = capsys.readouterr().out
    unvoted = [row["top5_unvoted"] for row in found["results"]]
    assert all(0 <= one <= row["top5_short"] for one, row in zip(unvoted, found["results"]))
    said = [line for line in out.splitlines() if line.startswith("warning: top-5")]
    assert any(unvoted) and len(said) == 1 and said[0] in found["remarks"]
