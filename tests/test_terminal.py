"""What is printed costs nothing, whoever reads it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from carp_plugin.terminal import Lasting, lasting, lasting_streams, say

ROOT = Path(__file__).parents[1]
PRINTS = r"""
import os, sys
from carp_plugin.terminal import lasting_streams, say
with lasting_streams():
    for i in range(3):
        print("line", i, flush=True)
        print("an error", file=sys.stderr, flush=True)
        say("\u00e9 \u2192 \u2501 said", "yellow")
print("after", file=open(sys.argv[1], "w"))
"""


def run(tmp_path, shell, **environment):
    """Lines printed into what ``shell`` does with them; exit code, output and whether the end was reached."""
    command = f"{sys.executable} -c '{PRINTS}' {tmp_path}/end {shell}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, env=environment
    )
    assert (tmp_path / "end").read_text() == "after\n"
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


@pytest.mark.parametrize(
    "shell", ["| true", "2>&1 | head -1", ">&-", ">&- 2>&-", "> /dev/full 2>&1", "< /dev/null"]
)
def test_a_reader_that_is_gone_costs_nothing(shell, tmp_path):
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    code, _, err = run(tmp_path, shell)
    assert code == 0 and "Traceback" not in err and "ignored" not in err


def test_characters_that_an_encoding_lacks_cost_nothing(tmp_path):
    code, out, _ = run(tmp_path, "", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert code == 0 and out.count("? ? ? said") == 3


def test_a_stream_that_was_closed_or_never_there():
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        last = Lasting(stream)
        assert last.write("text") == 4
        last.flush()
        last.writelines(["a", "b"])
    assert lasting(last) is last


def test_streams_are_what_they_were_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), lasting_streams():
        assert isinstance(sys.stdout, Lasting) and isinstance(sys.stderr, Lasting)
        print("printed")
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
    say("said")
    assert capsys.readouterr().out == "printed\nsaid\n"
