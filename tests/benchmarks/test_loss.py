"""`python benchmarks/loss.py` at sizes of milliseconds, and the arithmetic of its verdicts."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import budgets, loss
from benchmarks.formulations import FORMS, Case
from benchmarks.pictures import growth
from tests.run_cli import ROOT, run_cli

TINY = ["--images", "4", "8", "--prototypes", "64", "128", "--blocks", "16", "64", "--dim", "8"]


def call(capsys, monkeypatch, *arguments):
    return run_cli(capsys, monkeypatch, "benchmarks/loss.py", list(arguments))


@pytest.fixture
def hurried(monkeypatch):
    """Two turns a size instead of eight seconds of them."""
    monkeypatch.setattr(loss, "TURNS_SECONDS", 0.0)


def main(capsys, monkeypatch, *arguments):
    """As `call`, but with what a test has set in the module."""
    monkeypatch.setattr(sys, "argv", ["loss.py", *arguments])
    code = 0
    try:
        loss.main()
    except SystemExit as leaving:
        code = leaving.code
    out, err = capsys.readouterr()
    return code, out, err


def test_the_grid_with_table_json_and_picture(capsys, monkeypatch, hurried):
    code, out, err = main(capsys, monkeypatch, *TINY, "--out", "found")
    assert code == 0, err
    content = json.loads(Path("found/loss.json").read_text())
    assert len(content["results"]) == 8 and content["settings"]["dim"] == 8
    for name, result in content["results"].items():
        assert result["left_out"] == {}, name
        assert set(result["seconds"]) == set(result["bytes"]) == set(FORMS)
        assert all(len(taken) == 2 for taken in result["turns"].values())
        assert name in {Case(n, k, b, 8).name for n in (4, 8) for k in (64, 128) for b in (16, 64)}
    assert out.count("│   4 │") + out.count("│ 4 │") == 4
    assert Path("found/loss.png").read_bytes().startswith(b"\x89PNG")

    before = Path("found/loss.json").read_text()
    monkeypatch.setattr(loss, "in_own_process", None)  # a second call measures nothing
    assert main(capsys, monkeypatch, *TINY, "--out", "found")[0] == 0
    assert Path("found/loss.json").read_text() == before


def test_a_case_that_dies_is_said_and_the_others_stand(capsys, monkeypatch, hurried):
    real = loss.in_own_process

    def sometimes(function, case, *rest):
        if function is loss.extra_bytes and rest[0] == "materialised":
            raise loss.Died("its process was ended by signal 9")
        return real(function, case, *rest)

    monkeypatch.setattr(loss, "in_own_process", sometimes)
    arguments = ["--images", "4", "--prototypes", "64", "--blocks", "16", "--dim", "8"]
    code, out, _ = main(capsys, monkeypatch, *arguments, "--out", "found")
    assert code == 0 and "memory, materialised its process was ended by signal 9" in out
    (result,) = json.loads(Path("found/loss.json").read_text())["results"].values()
    assert set(result["seconds"]) == set(FORMS) and "materialised" not in result["bytes"]


def test_a_form_that_does_not_fit_is_left_out(capsys, monkeypatch, hurried):
    monkeypatch.setattr(loss, "fits", lambda case, device: False)
    arguments = ["--images", "4", "--prototypes", "64", "--blocks", "16", "--dim", "8"]
    code, out, _ = main(capsys, monkeypatch, *arguments, "--out", "found")
    assert code == 0 and "materialised would need about 0 GiB, more than there is" in out
    (result,) = json.loads(Path("found/loss.json").read_text())["results"].values()
    assert set(result["seconds"]) == set(result["bytes"]) == {"fused", "bare", "chunked"}


def test_ctrl_c_loses_no_measured_case():
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "loss.py")]
    command += ["--images", "8", "--prototypes", "4096", "--blocks", "16", "32", "64", "128"]
    process = subprocess.Popen([*command, "--out", "found"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not Path("found/loss.json").is_file() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert 1 <= len(json.loads(Path("found/loss.json").read_text())["results"]) <= 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--blocks", "48", "--prototypes", "64"], "--prototypes 64 is no multiple of --blocks 48"),
        (["--images", "0"], "--images 0: expected a whole number of at least 1"),
        (["--dim", "-3"], "--dim -3: expected a whole number of at least 1"),
        (["--device", "gpux"], "--device 'gpux' is no device"),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, sentence, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 2 and err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_the_sweep_shows_every_target(capsys, monkeypatch):
    monkeypatch.setattr(loss, "TARGETS_MIB", (1, 32))
    arguments = ["--sweep", "--images", "4", "--prototypes", "64", "--blocks", "16", "--dim", "8"]
    code, out, err = main(capsys, monkeypatch, *arguments, "--out", "found")
    assert code == 0, err
    (found,) = json.loads(Path("found/loss_sweep.json").read_text())["results"].values()
    assert set(found) == {"chunked", str(2**20), str(32 * 2**20)}
    assert "mean" in out


def quick_results(seconds, fused_bytes, materialised_bytes, flat):
    results = {}
    for run in range(budgets.RUNS):
        results[f"time, run {run}"] = seconds[run]
        results[f"memory of fused, run {run}"] = fused_bytes
        results[f"memory of materialised, run {run}"] = materialised_bytes
        for case, held in zip(budgets.FLAT_CASES, flat):
            results[f"memory at {case.name}, run {run}"] = held
    return results


def test_verdicts_are_medians_of_ratios():
    seconds = [
        {"fused": fused, "bare": 1.0, "materialised": 4.0} for fused in (9.0, 1.1, 1.2)
    ]  # one disturbed run
    results = quick_results(seconds, 100, 500, [10, 11, 12, 13, 14, 15])
    over_bare, over_materialised, memory = budgets.budgets(results)
    assert over_bare["median"] == 1.2 and over_bare["verdict"] == "within"
    assert over_materialised["median"] == 0.3 and over_materialised["verdict"] == "within"
    assert memory["median"] == 0.2 and memory["verdict"] == "over"
    flat = budgets.flatness(results)
    assert flat["runs"] == [1.5] * 3 and flat["verdict"] == "within"


def test_the_budgets_are_measured_and_filed(capsys, monkeypatch):
    case = Case(4, 64, 16, 8)
    monkeypatch.setattr(budgets, "TIME_CASE", case)
    monkeypatch.setattr(budgets, "MEMORY_CASE", case)
    monkeypatch.setattr(budgets, "FLAT_CASES", (case, Case(8, 64, 16, 8)))
    monkeypatch.setattr(budgets, "TURNS_SECONDS", 0.0)
    answers = {"extra_bytes": 1000, "seconds": {form: [1.0, 2.0, 3.0] for form in FORMS}}
    monkeypatch.setattr(budgets, "in_own_process", lambda function, *_: answers[function.__name__])
    code, out, err = main(capsys, monkeypatch, "--quick", "--out", "found")
    assert code == 0, err
    content = json.loads(Path("found/loss_quick.json").read_text())
    assert [v["median"] for v in content["verdicts"]] == [1.0] * 4
    assert [v["verdict"] for v in content["verdicts"]] == ["within", "over", "over", "within"]
    assert out.count("within") == 2 and out.count("over") >= 2


def test_the_step_is_held_against_its_limit(capsys, monkeypatch):
    found = {"bytes_over_model": 0.9e9, "model_bytes": 1.2e9, "seconds": 2.0}
    monkeypatch.setattr(budgets, "in_own_process", lambda *_: found)
    code, out, err = main(capsys, monkeypatch, "--step", "--out", "found")
    assert code == 0, err
    (verdict,) = json.loads(Path("found/loss_step.json").read_text())["verdicts"]
    assert verdict["median"] == 0.9 and verdict["budget"] == 3.0 and verdict["verdict"] == "within"
    assert "1.20 GB" in out


def test_the_picture_has_a_column_for_every_number_of_images():
    results = [
        {
            **Case(n, k, 512)._asdict(),
            "seconds": dict.fromkeys(FORMS, n * k * 1e-6),
            "bytes": dict.fromkeys(FORMS, 4 * n * k),
        }
        for n in (64, 128, 256)
        for k in (4096, 65536)
    ]
    picture = growth(results, 512)
    assert len(picture.figure.axes) == 6
    assert "N = 64, 128, 256" in picture.alt
    for axes in picture.figure.axes:
        assert len(axes.lines) == 3 and axes.get_xscale() == axes.get_yscale() == "log"
