"""SIGKILL, at a random moment and within the write of a checkpoint: a short run of trials/kills.py."""

import pytest

from trials.kills import good, table, trial


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_the_run_without_kills(tmp_path):
    result = trial(kills=1, writes=1, epochs=3, seed=1, home=tmp_path)
    assert good(result) and len(result["ended"]) >= 1
    assert not good({**result, "set back": 1}) and not good({**result, "resumed": 0})
    assert [kill["kind"] for kill in result["kills"]] == ["random", "write"]
    assert result["kills"][1]["at"] == "writing a checkpoint"
    assert "1 of 1 runs ended" in table({**result, "ended": result["ended"][:1]}).title
