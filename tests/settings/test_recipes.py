"""Every recipe composes and says what differs; shared parts hide no key; an installed package brings them all."""

import configparser
import importlib
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Trainer

from carp_plugin.settings import recipes
from tests.run_cli import ROOT

SCRIPTS = ROOT / "scripts"
SHARED = ROOT / "carp_plugin" / "configs"
RECIPES = sorted(SCRIPTS.rglob("*.yaml"))
SUBMITIT = importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher")

TRAINER = inspect.signature(Trainer.__init__).parameters

#: Keys at the top of a configuration, beside the arguments of Lightning's trainer.
KEYS = """
    name backbone data augmentations optimizer scheduler checkpoint auto_resume wandb performance seed
    initial_checkpoint resume_from_checkpoint dali method method_kwargs momentum auto_umap knn_eval evaluation collapse
    debug_augmentations pretrained_feature_extractor pretrain_method network weights labels
    dir methods variants reference paper seeds settings jobs threads keep_checkpoints knn linear gallery holdout trials
""".split()


def composed(path, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name, overrides=list(overrides))
    GlobalHydra.instance().clear()
    return cfg


def parametrized(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(SCRIPTS)))


@pytest.mark.parametrize("kind", ["", "cifar", "imagenet-100", "imagenet", "custom"])
def test_every_method_has_a_recipe_for_every_data_set(kind):
    """Called as the host calls them."""
    found = {path.stem for path in (SCRIPTS / "pretrain" / kind).glob("*.yaml")}
    assert found >= set("carp byol swav barlow simclr mocov2plus simsiam deepclusterv2".split())
    if kind:
        assert found >= {"carp_multicrop", "swav_multicrop"}


@parametrized(RECIPES)
def test_every_recipe_composes_to_a_name_and_keys_that_no_group_is_called(path):
    if path.name == "carp_slurm.yaml" and SUBMITIT is None:
        pytest.skip("the submitit launcher is not installed (extra: slurm)")
    cfg = composed(path)
    assert cfg.name and set(cfg) <= {*KEYS, *TRAINER}


@parametrized(RECIPES)
def test_no_recipe_repeats_what_the_commands_say_to_hydra(path):
    text = path.read_text()
    for word in ("hydra_logging", "job_logging", "searchpath", "output_subdir"):
        assert word not in text


@parametrized(RECIPES)
def test_every_recipe_begins_with_the_command_that_runs_it(path):
    """torchrun's, where there is one."""
    lines = path.read_text().splitlines()
    header = "\n".join(lines[: lines.index("defaults:")])
    assert all(line.startswith("# ") for line in header.splitlines())
    kind = path.relative_to(SCRIPTS).parts[0]
    script = f"main_{'compare' if kind == 'ablation' else kind}.py"
    assert (ROOT / script).is_file() and script in header
    assert f"--config-name {path.name}" in header


@pytest.mark.parametrize("folder", [SHARED, *sorted({path.parent for path in RECIPES})], ids=str)
def test_no_group_has_the_name_of_a_key(folder):
    """``key=value`` on the command line would look for a file of that name in the group."""
    groups = {path.name for path in folder.iterdir() if path.is_dir()} - {"hydra", "__pycache__"}
    assert groups & {*KEYS, *TRAINER} == set()


@pytest.mark.parametrize("name", ["carp.yaml", "byol.yaml"])
def test_the_method_is_a_key_on_the_command_line(name):
    assert composed(SCRIPTS / "pretrain" / name, "method=simsiam").method == "simsiam"


@pytest.mark.parametrize("name", ["pretrain/byol.yaml", "compare/photos.yaml"])
def test_the_views_can_be_chosen_on_the_command_line(name):
    views = composed(SCRIPTS / name, "views=multicrop").augmentations
    assert [view.crop_size for view in views] == [224, 224, 96]


@pytest.mark.parametrize(
    "name", ["pretrain/carp.yaml", "linear/cifar/carp.yaml", "compare/photos.yaml"]
)
def test_the_data_set_can_be_chosen_on_the_command_line(name):
    data = composed(SCRIPTS / name, "datasets@data=imagenet100").data
    assert (data.dataset, data.val_path) == ("imagenet100", "./datasets/imagenet-100/val")


@pytest.mark.parametrize("kind", ["pretrain", "linear/photos", "compare"])
def test_a_checkout_uses_its_own_recipes(kind):
    assert recipes.folder(kind) == SCRIPTS / kind and recipes.folder(kind).is_dir()


def test_beside_an_installed_package_a_folder_of_scripts_is_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "carp_plugin")
    (tmp_path / "scripts" / "pretrain").mkdir(parents=True)
    expected = tmp_path / "carp_plugin" / "scripts" / "pretrain"
    assert recipes.folder("pretrain") == expected
    (tmp_path / "main_pretrain.py").touch()
    assert recipes.folder("pretrain") == tmp_path / "scripts" / "pretrain"


def test_every_command_of_an_installation_is_a_function_without_arguments():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options.entry_points"]["console_scripts"].strip().splitlines():
        module, function = line.split(" = ")[1].split(":")
        command = getattr(importlib.import_module(module), function)
        assert not inspect.signature(command).parameters, line


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as a wheel brings it, in a folder of its own."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("carp_plugin", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_py", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return folder


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_an_installed_package_has_every_recipe_and_shared_part(installed):
    assert {path.name for path in installed.iterdir()} == {"carp_plugin"}
    assert files(installed / "carp_plugin" / "scripts") == files(SCRIPTS)
    ours = files(ROOT / "carp_plugin")
    theirs = files(installed / "carp_plugin")
    assert {name: theirs[name] for name in theirs if not name.startswith("scripts")} == ours
    assert {"py.typed", "compare/page.html.j2", "configs/run.yaml"} < set(theirs)


def test_an_installed_package_composes_its_own_recipes(installed, tmp_path):
    program = (
        "from hydra import compose, initialize_config_dir\n"
        "from carp_plugin.settings import hydra_defaults, recipes\n"
        "hydra_defaults.install()\n"
        "with initialize_config_dir(str(recipes.folder('pretrain')), version_base='1.2'):\n"
        "    print(recipes.folder('pretrain'), compose('carp.yaml').name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    expected = installed / "carp_plugin" / "scripts" / "pretrain"
    assert done.stdout == f"{expected} carp-photos\n", done.stderr
