"""One run: its verdict, what it repeats after a kill, and what it writes when it fails."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from carp_plugin.commands import worker


def test_spread_tells_a_constant_output_from_a_random_network():
    torch.manual_seed(0)
    same = F.normalize(torch.randn(1, 32)).repeat(100, 1)
    assert worker._spread(same) == pytest.approx(0, abs=1e-6)
    near = F.normalize(torch.randn(1, 32) + 0.05 * torch.randn(100, 32))
    assert worker._CONSTANT < worker._spread(near) < 0.01
    assert worker._spread(F.normalize(torch.randn(1000, 32))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "signs, spread, status, why",
    [
        ([], {"student": 0.1, "teacher": 0.1}, "ok", None),
        ([], {"student": 0.1, "teacher": 0.0}, "collapsed", "the teacher's features are the same"),
        ([], {"student": float("nan")}, "collapsed", "the student's features are the same"),
        (["assignments are uniform"], {"student": 0.1}, "collapsed", "assignments are uniform"),
    ],
)
def test_verdict(signs, spread, status, why):
    got, said = worker._verdict({"signs_of_collapse": signs, "spread": spread})
    assert got == status and (said is None if why is None else said.startswith(why))


def test_a_finished_stage_is_not_repeated(tmp_path):
    calls = []
    for _ in range(2):
        assert worker._stage(tmp_path, "knn", lambda: calls.append(1) or {"a": 1}) == {"a": 1}
    assert calls == [1]


def test_correct_answers_of_several_stages_are_in_one_file(tmp_path):
    worker._save_correct(tmp_path, {"knn/student/20": np.array([True, False])})
    worker._save_correct(tmp_path, {"linear/student": np.array([False, False])})
    worker._save_correct(tmp_path, {"linear/student": np.array([True, True])})
    with np.load(tmp_path / worker.CORRECT) as arrays:
        found = {key: arrays[key].tolist() for key in arrays}
    assert found == {"knn/student/20": [True, False], "linear/student": [True, True]}
    assert [path.name for path in tmp_path.iterdir()] == [worker.CORRECT]


def test_a_failure_is_a_result(tmp_path, monkeypatch, capsys):
    job = {
        "label": "byol",
        "method": "byol",
        "seed": 3,
        "trial": None,
        "settings": {"threads": None},
    }
    (tmp_path / worker.JOB).write_text(json.dumps(job))
    monkeypatch.setattr(worker, "_follow_parent", lambda: None)

    def broken(folder):
        raise RuntimeError("the loss\nis NaN")

    monkeypatch.setattr(worker, "work", broken)
    assert worker.main([str(tmp_path)]) == 0
    result = json.loads((tmp_path / worker.RESULT).read_text())
    assert (result["status"], result["why"]) == ("failed", "RuntimeError: the loss is NaN")
    assert (result["label"], result["seed"]) == ("byol", 3)
    assert "Traceback" in capsys.readouterr().err  # goes to log.txt
