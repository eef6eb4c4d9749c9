"""`python -m carp_plugin SCRIPT.py …`: a script of the host's with CARP among the methods."""

import os
import subprocess
import sys

from tests.run_cli import ROOT


def run(*arguments, cwd):
    command = [sys.executable, "-W", "ignore", "-m", "carp_plugin", *arguments]

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_script_runs_as_main_with_carp_registered(tmp_path):
    (tmp_path / "neighbour.py").write_text("WORD = 'beside'\n")
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from neighbour import WORD\n"
        "from solo.methods import METHODS\n"
        "assert __name__ == '__main__'\n"
        "from carp_plugin.host import METHODS as OURS\n"
        "print('carp' in OURS, WORD, sys.argv)\n"
    )
    done = run("script.py", "key=value", "--flag", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True beside ['script.py', 'key=value', '--flag']"


def test_missing_script_is_one_sentence(tmp_path):
    done = run("main_pretrian.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: main_pretrian.py does not exist")
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_a_script_the_usage_is_shown(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode != 0 and "usage: python -m carp_plugin SCRIPT.py" in done.stderr


def test_a_script_that_moves_to_a_card_runs_without_one(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "moved = torch.ones(2).cuda(non_blocking=True)\n"
        "print(moved.sum().item(), moved.is_cuda == torch.cuda.is_available())\n"
    )
    done = run("script.py", cwd=tmp_path)
    assert done.stdout.strip() == "2.0 True", done.stderr
