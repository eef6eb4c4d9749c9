"""`python benchmarks/step.py` with tiny methods: the phases of a step add up, and no turn is lost."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import step
from benchmarks.formulations import Case
from benchmarks.pictures import shares
from benchmarks.training import (
    PHASES,
    batches,
    fit,
    head_step_memory,
    method_of,
    model_bytes,
    step_settings,
    without_backbone,
)
from tests.helpers import METHOD_KWARGS
from tests.run_cli import run_cli

FULL_WIDTH = True  # of ResNets: tests/conftest.py

METHODS = ("carp", "byol", "swav", "barlow_twins")
LARS = {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True}


def small(method="carp", batch=6):
    kwargs = {**METHOD_KWARGS[method]}
    if method == "swav":
        kwargs["queue_size"] = batch
    return method_of(step_settings(method, kwargs, "resnet18", 8, batch, "cifar10", LARS))


@pytest.fixture
def tiny(monkeypatch):
    """One setting, whose four methods train a step in milliseconds."""
    methods = {method: {**METHOD_KWARGS[method]} for method in METHODS}
    methods["swav"]["queue_size"] = 4
    setting = step.Setting("tiny", "resnet18", 8, 4, "cifar10", LARS, methods)
    monkeypatch.setattr(step, "SETTINGS", {"resnet18": setting})


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["step.py", *arguments])
    code = 0
    try:
        step.main()
    except SystemExit as leaving:
        code = leaving.code
    out, err = capsys.readouterr()
    return code, out, err


def test_steps_in_turns_with_table_json_and_picture(capsys, monkeypatch, tiny):
    arguments = ("--turns", "2", "--steps", "1", "--out", "found")
    code, out, err = main(capsys, monkeypatch, *arguments)
    assert code == 0, err
    content = json.loads(Path("found/step.json").read_text())
    taken = list(content["results"])
    assert taken[:8] == [f"resnet18, step, turn {t}, {m}" for t in (0, 1) for m in METHODS]
    assert taken[8:16] == [f"resnet18, head, turn {t}, {m}" for t in (0, 1) for m in METHODS]
    assert taken[16:] == ["resnet18, parts of carp"]
    found = content["summary"]["resnet18"]
    for method in METHODS:
        one = found["methods"][method]
        assert sum(one["parts"].values()) == pytest.approx(sum(one["phases"].values()))
        assert method in out
    assert found["methods"]["byol"]["over_byol"] == 1
    head_and_loss = found["methods"]["carp"]["parts"]["head and loss"]
    assert sum(found["carp"].values()) == pytest.approx(head_and_loss)
    assert Path("found/step.png").read_bytes().startswith(b"\x89PNG")

    before = content["results"]
    monkeypatch.setattr(step, "fit", None)  # a second call measures nothing
    assert main(capsys, monkeypatch, *arguments)[0] == 0
    assert json.loads(Path("found/step.json").read_text())["results"] == before


def test_phases_of_a_step_add_up_and_the_first_is_left_out():
    steps = fit(small(), batches(6, 8, 4))
    assert len(steps) == 3
    for one in steps:
        assert set(one) == {*PHASES, "step"}
        assert sum(one[phase] for phase in PHASES) == pytest.approx(one["step"])
        assert all(value > 0 for value in one.values())


def test_a_step_is_that_of_the_host():
    """The optimizer moves the student, and the momentum update the teacher."""
    model = small()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    fit(model, batches(6, 8, 2))
    for part in ("backbone.conv1", "projector.0", "prototypes", "momentum_projector.0"):
        name = f"{part}.weight"
        assert not torch.equal(dict(model.named_parameters())[name], before[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_without_backbone_the_rest_trains(method):
    model = without_backbone(small(method), 6)
    before = model.projector[0].weight.clone()
    assert len(fit(model, batches(6, 4, 2))) == 1
    assert not torch.equal(model.projector[0].weight, before)


def test_model_bytes_count_gradients_momentum_and_copies():
    module = torch.nn.Linear(3, 2)
    copy = torch.nn.Linear(3, 2).requires_grad_(False)
    norm = torch.nn.BatchNorm1d(2, affine=False)  # mean, variance and an int64 counter
    assert model_bytes(torch.nn.ModuleList([module, copy, norm])) == (3 + 1) * 8 * 4 + 2 * 2 * 4 + 8


def test_memory_of_a_step_of_the_head_is_told():
    found = head_step_memory(Case(4, 64, 16, 8), "cpu", steps=2)
    hidden, width = 2048, 2048
    head = width * hidden + hidden * hidden + hidden * 8 + 2 * hidden + 8 + 2 * 2 * hidden
    learns = head + 64 * 8
    classifier = 1000 * (width + 1)
    assert found["model_bytes"] >= 4 * (4 * learns + 3 * classifier)
    assert found["model_bytes"] < 4 * (4 * learns + 3 * classifier) * 1.1
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--turns", "0"], "--turns 0: expected a whole number of at least 1"),
        (["--batch", "-2"], "--batch -2: expected a whole number of at least 1"),
        (["--batch", "1"], "--batch 1: batch norm needs at least 2 images"),
        (["--device", "meta"], "--device 'meta' cannot be measured here"),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, sentence, capsys, monkeypatch):
    code, _, err = run_cli(capsys, monkeypatch, "benchmarks/step.py", arguments)
    assert code == 2 and err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_the_budget_has_a_verdict():
    assert step._verdict(1.05).endswith("within") and step._verdict(1.051).endswith("over")


def test_bars_are_as_high_as_the_step():
    parts = {part: 1.0 + i for i, part in enumerate(step.PARTS)}
    picture = shares({"one": {"carp": parts, "byol": parts}}, step.PARTS)
    (axes,) = picture.figure.axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert max(tops) == sum(parts.values())
    assert len(axes.patches) == 2 * len(step.PARTS)
