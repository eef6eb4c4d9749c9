"""`python -m carp_plugin SCRIPT.py …`: a script of the host's with CARP among the methods."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_without_a_script_the_help_is_shown_as_a_mistake(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == run("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_an_example_that_is_there_and_every_command(flag, tmp_path):
    done = run(flag, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("usage: python -m carp_plugin SCRIPT.py")
    example = re.search(r"--config-path (\S+) --config-name (\S+)", done.stdout)
    assert Path(*example.groups()).is_file()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert len(scripts) == 7
    for script in scripts:
        assert f"\n  {script.split()[0]} " in done.stdout


def test_a_recipe_composes_in_a_script_of_the_host_and_leaves_no_folder(tmp_path):
    """Without a word about us in the script, and no line about Hydra in the recipe."""
    (tmp_path / "script.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base='1.2')\n"
        "def main(cfg):\n"
        "    print(cfg.name, cfg.method, cfg.backbone.name, cfg.data.dataset)\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    recipe = ["--config-path", str(ROOT / "scripts/pretrain/cifar"), "--config-name", "carp.yaml"]
    done = run("script.py", *recipe, "name=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "mine carp resnet18 cifar10"
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_script_that_moves_to_a_card_runs_without_one(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "moved = torch.ones(2).cuda(non_blocking=True)\n"
        "print(moved.sum().item(), moved.is_cuda == torch.cuda.is_available())\n"
    )
    done = run("script.py", cwd=tmp_path)
    assert done.stdout.strip() == "2.0 True", done.stderr
