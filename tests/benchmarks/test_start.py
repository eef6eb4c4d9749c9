"""`python benchmarks/start.py`: every command is started as it is said to be, and what is measured is the command's."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import start
from benchmarks.start import BUDGET, REFERENCE, Start, launched, measure, starts, summary
from carp_plugin.commands import entries
from carp_plugin.commands.cli import Command, FlagCommand
from carp_plugin.errors import UserError
from tests.run_cli import run_cli

CALLS = starts()
TWO = {REFERENCE: Start(("-c", "pass")), "other": Start(("-c", "import sys; sys.exit(2)"), 2)}


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["start.py", *arguments])
    code = 0
    try:
        start.main()
    except SystemExit as leaving:
        code = leaving.code
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_is_started_for_its_help_and_with_a_mistake():
    commands = [one for one in vars(entries).values() if isinstance(one, (Command, FlagCommand))]
    assert len(commands) == 7 and len(CALLS) == 1 + 2 * len(commands)
    assert next(iter(CALLS)) == REFERENCE
    for command in commands:
        own = [call for call in CALLS.values() if call.arguments[0] == command.script]
        assert [call.code for call in own] == [0, 2], command.script
        assert own[0].arguments[1:] == ("--help",) and own[1].said


@pytest.mark.parametrize("name", CALLS)
def test_a_start_ends_as_it_has_to(name):
    assert set(launched(name, CALLS[name])) == {"seconds", "megabytes"}


def test_memory_is_that_of_the_command_and_not_of_this_process():
    """This process holds torch, hundreds of MB, which the system would count into its children's peak."""
    little = launched("little", Start(("-c", "pass")))["megabytes"]
    much = launched("much", Start(("-c", "held = b'.' * 2**26")))["megabytes"]
    assert little < 50
    assert much - little == pytest.approx(64, abs=4)


def test_seconds_are_those_of_the_whole_command():
    assert launched("sleeps", Start(("-c", "import time; time.sleep(0.2)")))["seconds"] >= 0.2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Start(("-c", "import sys; sys.exit('no')"), 2, "no"), "it ended with 1 and said 'no'"),
        (Start(("-c", "import sys; print('no', file=sys.stderr)"), 0, "yes"), "0 and said 'no'"),
        (Start(("-c", "import os; os.kill(os.getpid(), 9)")), "ended with -9 and said 'nothing'"),
    ],
)
def test_a_start_that_ends_otherwise_is_no_measurement(call, sentence):
    with pytest.raises(UserError, match=f"{sentence}; expected {call.code} and {call.said!r}"):
        launched("it", call)


def test_starts_take_turns_and_the_first_is_not_counted(monkeypatch):
    order = []

    def counted(name, call):
        order.append(name)
        return {"seconds": float(len(order)), "megabytes": 1.0}

    monkeypatch.setattr(start, "launched", counted)
    runs = measure(TWO, 2)
    assert order == [REFERENCE, "other"] * 3
    assert [run["seconds"] for run in runs[REFERENCE]] == [3, 5]
    assert [run["seconds"] for run in runs["other"]] == [4, 6]


def test_ratios_are_to_the_reference_of_the_same_turn():
    def taken(*seconds):
        return [{"seconds": one, "megabytes": 30.0} for one in seconds]

    # The second turn was slow for all.
    runs = {
        REFERENCE: taken(1.0, 9.0, 1.0),
        "within": taken(BUDGET, 9 * BUDGET, 2.0),
        "over": taken(4.5, 9 * 4.5, 1.0),
    }
    found = summary(runs)
    assert {name: one["ratio"] for name, one in found.items()} == {
        REFERENCE: 1.0,
        "within": BUDGET,
        "over": 4.5,
    }
    assert [one["verdict"] for one in found.values()] == ["within", "within", "over"]
    assert found["over"]["seconds"] == 4.5 and found["over"]["megabytes"] == 30


def test_table_and_json(capsys, monkeypatch):
    monkeypatch.setattr(start, "starts", lambda: TWO)
    monkeypatch.setattr(start, "BUDGET", 0.0)
    path = Path("new/start.json")
    code, out, err = main(capsys, monkeypatch, "--turns", "2", "--json", str(path))
    assert code == 0, err
    content = json.loads(path.read_text())
    assert content["turns"] == 2 and content["budget"] == 0
    assert list(content["starts"]) == list(content["runs"]) == list(TWO)
    assert all(len(runs) == 2 for runs in content["runs"].values())
    assert content["starts"][REFERENCE]["ratio"] == 1
    assert content["settings"]["machine"]["device"] == "cpu"
    assert "location" not in content["settings"]["host"]
    seconds = content["starts"]["other"]["seconds"]
    assert f"{seconds:.3f}" in out and "over 0 x: other" in out and f"written to {path}" in out


@pytest.mark.parametrize("turns", ["0", "-1"])
def test_a_number_of_turns_that_is_none(turns, capsys, monkeypatch):
    code, _, err = run_cli(capsys, monkeypatch, "benchmarks/start.py", ["--turns", turns])
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: --turns {turns}: expected a whole number of at least 1")


def test_a_file_that_cannot_be_written(capsys, monkeypatch):
    monkeypatch.setattr(start, "starts", lambda: TWO)
    Path("file").write_text("")
    code, _, err = main(capsys, monkeypatch, "--turns", "1", "--json", "file/start.json")
    assert code == 2 and "file cannot be made" in err and "name another file with --json" in err
