"""What our commands ask of Hydra holds without a line in the recipe, and for nobody who did not ask."""

import os
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from carp_plugin.settings import hydra_defaults
from tests.run_cli import ROOT

#: What every recipe had to say before.
RITUAL = {
    "output_subdir": None,
    "run": {"dir": "."},
    "searchpath": ["pkg://carp_plugin.configs"],
}
LOGS = [
    {"override hydra/hydra_logging": "disabled"},
    {"override hydra/job_logging": "disabled"},
]

#: A program with Hydra; the line in the middle is a test's.
SCRIPT = """
import hydra
{}
@hydra.main(version_base="1.2", config_path=".", config_name="small")
def main(cfg):
    print("seed", cfg.seed)
main()
"""


def composed(path, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name, overrides=list(overrides), return_hydra_config=True)
    GlobalHydra.instance().clear()
    return OmegaConf.to_container(cfg, resolve=False)


def written(folder, **content):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def program(
    folder, *arguments, line="from carp_plugin.settings.hydra_defaults import install; install()"
):
    """Standard output of the program in a process of its own."""
    written(folder, defaults=["run", "_self_"] if "install()" in line else ["_self_"], seed=7)
    (folder / "program.py").write_text(SCRIPT.format(line))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "program.py", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(folder):
    return {path.name for path in folder.iterdir()} - {"program.py", "small.yaml"}


def test_a_recipe_without_a_line_about_hydra_finds_the_shared_parts_and_is_quiet(tmp_path):
    cfg = composed(written(tmp_path, defaults=["run", "_self_"], name="mine"))
    hydra = cfg.pop("hydra")
    assert cfg["name"] == "mine" and cfg["checkpoint"]["enabled"] is True
    assert hydra["output_subdir"] is None and hydra["run"] == {"dir": "."}
    assert hydra["hydra_logging"]["root"] == hydra["job_logging"]["root"] == {"level": "ERROR"}


@pytest.mark.parametrize(
    "name", ["pretrain/carp.yaml", "linear/imagenet/byol.yaml", "compare/photos.yaml"]
)
def test_a_recipe_that_still_says_it_all_composes_to_the_same(name, tmp_path):
    recipe = ROOT / "scripts" / name
    old = yaml.safe_load(recipe.read_text())
    old["defaults"] += LOGS
    now, then = composed(recipe), composed(written(tmp_path, **old, hydra=RITUAL))
    for cfg in (now, then):
        for known in ("searchpath", "runtime", "job"):  # the name and place of the file
            del cfg["hydra"][known]
    assert now == then


def test_what_a_recipe_or_the_command_line_says_about_hydra_holds(tmp_path):
    own = {"run": {"dir": "elsewhere"}, "output_subdir": ".mine"}
    path = written(
        tmp_path, defaults=["_self_", {"override hydra/job_logging": "default"}], hydra=own
    )
    hydra = composed(path, "hydra/hydra_logging=default", "hydra.output_subdir=.theirs")["hydra"]
    assert hydra["run"]["dir"] == "elsewhere" and hydra["output_subdir"] == ".theirs"
    assert (
        hydra["job_logging"]["root"]["level"] == hydra["hydra_logging"]["root"]["level"] == "INFO"
    )


def test_the_folder_of_a_sweep_is_as_hydra_has_it(tmp_path):
    assert composed(written(tmp_path, seed=1))["hydra"]["sweep"] == {
        "dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}",
        "subdir": "${hydra.job.num}",
    }


def test_the_folder_of_the_recipe_comes_before_the_shared_parts(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 99\n")
    cfg = composed(written(tmp_path, defaults=["run", "_self_"]))
    assert cfg["seed"] == 99 and "checkpoint" not in cfg


def test_installing_again_changes_nothing(tmp_path):
    path = written(tmp_path, defaults=["run", "_self_"])
    before = composed(path)
    hydra_defaults.install()
    assert composed(path) == before
    assert Plugins.instance().discover(SearchPathPlugin).count(hydra_defaults.SharedParts) == 1
    sources = [each["path"] for each in before["hydra"]["runtime"]["config_sources"]]
    assert sources.count("carp_plugin.configs") == 1


def test_a_program_that_installs_leaves_no_folder(tmp_path):
    assert program(tmp_path) == "seed 7\n" and not left(tmp_path)


def test_a_program_that_only_imports_us_is_as_hydra_has_it(tmp_path):
    line = "import carp_plugin, carp_plugin.settings.hydra_defaults"
    assert program(tmp_path, line=line) == "seed 7\n"
    (run,) = (tmp_path / "outputs").glob("*/*")
    assert {path.name for path in run.iterdir()} == {".hydra", "program.log"}
    assert "carp_plugin" not in program(tmp_path, "--info", "searchpath", line=line)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--cfg", "job"], "seed: 7\n"),
        (["--cfg", "hydra"], "output_subdir: null\n"),
        (["--info", "searchpath"], "pkg://carp_plugin.configs"),
        (["--info", "defaults"], "hydra/job_logging/disabled"),
        (["--help"], "optimizers: lars, lars_clipped, sgd\n"),
        (["-m", "seed=1,2"], "seed 1\nseed 2\n"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_hydra_can_tell_it_still_tells(arguments, said, tmp_path):
    assert said in program(tmp_path, *arguments)
    assert left(tmp_path) == ({"multirun"} if "-m" in arguments else set())
