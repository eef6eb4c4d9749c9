"""`python main_evaluate.py`: a checkpoint to the table and the file, features once, and what mistakes earn."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from carp_plugin.commands.entries import EVALUATE, KNN
from carp_plugin.commands.evaluate import evaluate
from carp_plugin.commands.knn import knn
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.data.listing import list_images
from carp_plugin.data.subsets import subset_of
from carp_plugin.evaluation.protocols import PROTOCOLS
from carp_plugin.host import HOST
from tests.helpers import image_folder, small_settings, write_image
from tests.run_cli import run_cli

LABELLED = [name for name, protocol in PROTOCOLS.items() if protocol.labelled]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a pretraining of one epoch."""
    images = image_folder(tmp_path_factory.mktemp("images"))
    folder = tmp_path_factory.mktemp("carp")
    off = {"evaluation": {"enabled": False}, "checkpoint__dir": str(folder)}
    return Path(pretrain(small_settings(images, "carp", max_epochs=1, **off))["checkpoint"]).parent


def flags(run, *more):
    return EVALUATE.read(["--pretrained_checkpoint_dir", str(run), *more])


def test_all_protocols_share_one_pass_over_the_images(run, capsys, monkeypatch, tmp_path):
    file = tmp_path / "made" / "all.json"
    arguments = ["--pretrained_checkpoint_dir", str(run), "--protocols", *LABELLED]
    code, out, err = run_cli(
        capsys, monkeypatch, "main_evaluate.py", [*arguments, "--json", str(file)]
    )
    assert code == 0, err
    found = json.loads(file.read_text())
    assert found["passes"] == {"train": 1, "val": 1, "copies": 1}
    assert list(found["protocols"]) == LABELLED and found["host"] == HOST.as_dict()
    for name in LABELLED:
        assert PROTOCOLS[name].title in out
        results = found["protocols"][name]["results"]
        assert {"student/backbone", "teacher/backbone"} <= set(results)
        for result in results.values():
            for score in result["scores"].values():
                low, high = score["interval"] or (score["value"], score["value"])
                assert -100 <= low <= score["value"] <= high <= 100
    assert re.search(r"written to \S*evaluation.json and \S*all.json", " ".join(out.split()))


def test_its_knn_is_that_of_main_knn(run):
    arguments = ["--pretrained_checkpoint_dir", str(run), "--feature_dtype", "float32"]
    theirs = knn(KNN.read([*arguments, "--k", "5", "20", "--feature_type", "backbone"]))["results"]
    found = evaluate(flags(run, "--protocols", "knn", "--knn.k", "5", "20"))
    ours = found["protocols"]["knn"]["results"]
    assert theirs
    for result in theirs:
        scores = ours[f"{result['network']}/backbone"]["scores"]
        assert scores[f"top1 (k = {result['k']})"]["value"] == result["top1"]


def test_logistic_regression_takes_the_labels_of_fine_tuning(run, tmp_path):
    """Fractions and published lists name the same images as main_finetune.py does."""
    args = json.loads((run / "args.json").read_text())
    samples = list_images(args["data"]["train_path"], labelled=True).samples
    half = subset_of(
        samples, args["data"]["train_path"], SimpleNamespace(fraction=0.5, file=None, seed=3)
    )
    names = [Path(samples[i][0]).relative_to(args["data"]["train_path"]) for i in half.indices]
    listed = tmp_path / "half.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    given = ["--protocols", "logistic", "--logistic.C", "1", "--seed", "3", "--networks", "student"]
    given += ["--logistic.fractions", "1", "0.5", "--logistic.file", str(listed)]
    found = evaluate(flags(run, *given))["protocols"]["logistic"]["results"]["student/backbone"]
    drawn, named = found["50 % of labels"]["subset"], found["listed labels"]["subset"]
    assert drawn["sha256"] == named["sha256"] == half.sha256 and drawn["images"] == 12
    scores = {name: score["value"] for name, score in found["scores"].items()}
    assert scores["top1, 50 % of labels"] == scores["top1, listed labels"]
    assert list(scores)[0] == "top1"


def test_a_protocol_that_fails_costs_no_other(run, tmp_path, capsys, monkeypatch):
    file = tmp_path / "some.json"
    arguments = ["--pretrained_checkpoint_dir", str(run), "--protocols", "voc07", "knn"]
    arguments += ["--voc07.root", str(tmp_path), "--knn.k", "5", "--json", str(file)]
    code, out, err = run_cli(capsys, monkeypatch, "main_evaluate.py", arguments)
    assert code == 2 and "holds no PASCAL VOC 2007" in err and "top1 (k = 5)" in out
    assert list(json.loads(file.read_text())["protocols"]) == ["knn"]


def test_an_earlier_result_is_left_alone(run):
    first = evaluate(flags(run, "--protocols", "knn", "--knn.k", "3"))
    names = {path.name for path in run.glob("evaluation*.json")}
    kept = {name: (run / name).read_text() for name in names}
    evaluate(flags(run, "--protocols", "knn", "--knn.k", "4"))
    assert len(list(run.glob("evaluation*.json"))) == len(names) + 1
    assert all((run / name).read_text() == text for name, text in kept.items())
    assert first["protocols"]["knn"]["settings"]["k"] == [3]


def test_prototypes_are_scored_without_a_column_of_the_projector(run):
    found = evaluate(flags(run, "--protocols", "clustering", "--clustering.starts", "2"))
    results = found["protocols"]["clustering"]["results"]
    assert list(results) == ["student/backbone", "teacher/backbone"]
    for result in results.values():
        assert {"AMI (prototypes)", "AMI, blocks (prototypes)"} <= set(result["scores"])
        assert result["prototypes"]["number"] == 32 and result["prototypes"]["blocks"]["size"] == 8
    assert found["passes"] == {"val": 1}


def test_landmarks_are_read_from_their_files(run, tmp_path):
    for number, name in enumerate(["a", "b", "c", "q"]):
        write_image(tmp_path / f"{name}.jpg", number)
    one = {"bbx": [0, 0, 15, 15], "easy": [0], "hard": [1], "junk": []}
    truth = {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [one]}
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth))
    given = ["--landmarks.ground_truth", str(tmp_path / "gnd.pkl")]
    given += ["--landmarks.images", str(tmp_path), "--networks", "teacher"]
    for more in ([], ["--landmarks.size", "18"]):
        found = evaluate(flags(run, "--protocols", "landmarks", *given, *more))
        scores = found["protocols"]["landmarks"]["results"]["teacher/backbone"]["scores"]
        assert list(scores)[0] == "mAP (medium)" and 0 < scores["mAP (medium)"]["value"] <= 100
        assert found["passes"] == {"landmarks": 1, "landmarks, queries": 1}


MISTAKES = [
    (["--protocols", "knnn"], "argument --protocols: invalid choice: 'knnn'"),
    (["--knn.k", "0"], "--knn.k must be a whole number of at least 1, got 0."),
    (["--logistic.C", "-1"], "--logistic.C must be a number above 0, got -1"),
    (["--knn.kk", "3"], "--knn.kk is not a flag of main_evaluate.py; did you mean '--knn.k'?"),
    (["--protocols", "knn", "--knn.k", "100000"], "--knn.k 100000 is larger than the bank of 24"),
    (
        ["--protocols", "landmarks", "--landmarks.images", "."],
        "--protocols landmarks needs --landmarks.ground_truth FILE, such as gnd_roxford5k.pkl, and",
    ),
    (
        "--protocols landmarks --landmarks.images . --landmarks.ground_truth /dev/null".split(),
        "the ground truth /dev/null is no pickle that can be read (it is not a file)",
    ),
    (["--copies.transformations", "flip"], "--copies.transformations: invalid choice: 'flip'"),
    (["--clustering.starts", "0"], "--clustering.starts must be a whole number between 1 and 1000"),
    (["--json", "."], "--json . is a folder; give a file."),
]


@pytest.mark.parametrize("given, said", MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_earns_one_sentence(given, said, run, capsys, monkeypatch):
    arguments = ["--pretrained_checkpoint_dir", str(run), *given]
    code, out, err = run_cli(capsys, monkeypatch, "main_evaluate.py", arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err
