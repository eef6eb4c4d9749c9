"""The trial of mutants: it draws real faults, and sees whether tests fail."""

import pytest

from trials.mutants import ROOT, TARGETS, _matters, mutants, run_tests


def test_every_file_and_test_is_there():
    for file, tests in TARGETS.items():
        assert (ROOT / "carp_plugin" / file).is_file()
        assert all((ROOT / test).exists() for test in tests.split())


@pytest.mark.parametrize(
    "changed, matters",
    [
        ("def f(x: float) -> int:\n    return x + 1\n", False),  # annotations are not evaluated
        ("def f(x: int) -> int:\n    return x - 1\n", True),
        ("def f(x: int) -> int:\n    return (x + 1)\n", False),
        ("def f(x: int) -> int:\n    return x +\n", False),  # no program
    ],
)
def test_only_another_program_is_a_mutant(changed, matters):
    assert _matters("def f(x: int) -> int:\n    return x + 1\n", changed) == matters


@pytest.mark.parametrize(
    "body, verdict", [("assert 1 + 1 == 2", "passed"), ("assert 1 - 1 == 2", "failed")]
)
def test_a_failing_test_is_seen(body, verdict, tmp_path):
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    assert run_tests(tmp_path, ["test_it.py"], 60)[0] == verdict


def test_an_endless_test_is_ended(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it():\n    while True: pass\n")
    assert run_tests(tmp_path, ["test_it.py"], 3)[0] == "timeout"


def test_mutants_are_faults_at_different_places():
    pytest.importorskip("cosmic_ray", reason="the extra `mutants` is not installed")
    drawn = mutants("partition.py", 5, seed=1)
    assert len(drawn) == 5 and drawn == mutants("partition.py", 5, seed=1)
    sound = (ROOT / "carp_plugin" / "partition.py").read_text()
    for mutant in drawn:
        assert mutant.before != mutant.after and _matters(sound, mutant.code)
