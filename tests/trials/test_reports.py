"""A few situations of trials/reports.py through the same code, and its judges."""

import re

import pytest

from carp_plugin.errors import UserError
from trials.report_world import CASES, Answer, Case, NotRun, Wrong, must
from trials.reports import Outcome, chosen, outcome, reports, table


class Nobody:
    """A worker that is never asked."""


def test_every_case_of_the_list_and_two_of_each_kind_but_the_last_letters():
    assert {str(number) for number in range(1, 29)} <= set(CASES)
    for kind in range(1, 10):
        assert {f"{kind}a", f"{kind}b"} <= set(CASES)
    assert all(re.fullmatch(r"\d+[ab]?", name) for name in CASES)


def test_cases_are_chosen_by_number():
    assert [case.number for case in chosen("5, 14,1a")] == ["5", "14", "1a"]
    everything = [case.number for case in chosen(None)]
    assert everything[:3] == ["1", "2", "3"] and everything[-1] == "9b"
    with pytest.raises(UserError, match="no case '29'"):
        chosen("29")


def judged(tmp_path, play):
    (tmp_path / "kept").mkdir()
    return outcome(Case("0", "about", play), tmp_path, tmp_path / "kept", Nobody())


def test_a_fact_decides(tmp_path):
    def wrong(world):
        must(world.images.is_dir(), "no images")
        must(False, f"{world.home} is not so")

    found = judged(tmp_path, wrong)
    assert found.verdict == "not ok: … is not so" and not found.good
    assert not (tmp_path / "case0").exists()


def test_what_cannot_be_run_says_why_and_is_not_counted_as_wrong(tmp_path):
    def absent(world):
        raise NotRun("no card")

    found = judged(tmp_path, absent)
    assert found.verdict == "not run: no card" and found.good


def test_what_is_not_there_is_wrong_and_no_trace(tmp_path):
    found = judged(tmp_path, lambda world: world.last())
    assert found.verdict == "not ok: no checkpoint was written"
    found = Outcome("1", "[bold]", "[0] said", "ok", 1.0)
    assert table([found]).title.startswith("1 situations from public reports, 0 not")


GOOD = Answer(0, " data   72 images, 6 classes\n", "warning: k = 200 is left out\n")
REFUSED = Answer(2, "", "warning: x\nerror: LOCAL_RANK=0 is set; unset LOCAL_RANK.\n")


def test_the_judges_let_what_is_right_pass():
    assert GOOD.ran().says("6 classes").warns("200", "left out").images == 72
    assert REFUSED.refused("LOCAL_RANK").line().startswith("[2] error: LOCAL_RANK=0")


@pytest.mark.parametrize(
    "judge, why",
    [
        (lambda: GOOD.refused(), "exit code 0"),
        (lambda: REFUSED.ran(), "exit code 2"),
        (lambda: REFUSED.refused("RANK=1"), "nothing says"),
        (lambda: REFUSED._replace(err=REFUSED.err * 2).refused(), "2 sentences"),
        (lambda: REFUSED._replace(err="").refused(), "0 sentences"),
        (lambda: GOOD._replace(code=None).ran(), "hung"),
        (lambda: GOOD._replace(err="Traceback (most recent call last):\n").ran(), "stack trace"),
        (lambda: GOOD.warns("200", "bank"), "no sentence warns"),
        (lambda: REFUSED.images, "gives no number"),
    ],
)
def test_the_judges_see_what_is_wrong(judge, why):
    with pytest.raises(Wrong, match=why):
        judge()


@pytest.mark.slow
def test_situations_that_are_mended_stay_so(tmp_path):
    outcomes = reports(chosen("18,19,20,2b"), tmp_path)
    assert not [found for found in outcomes if found.verdict != "ok"]
