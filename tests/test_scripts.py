"""Every YAML under ``scripts/`` starts, trains two steps on a made tree of its data set's layout, and evaluates."""

import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torchvision.datasets import CIFAR10

from carp_plugin.commands.finetune import finetune
from carp_plugin.commands.linear import linear
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.commands.worker import work
from carp_plugin.compare.plan import plan
from carp_plugin.compare.runner import _prepare
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.finetune import read_finetune
from carp_plugin.settings.linear import read_linear
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from tests.helpers import METHOD_KWARGS
from tests.linear_helpers import write_checkpoint
from tests.made_trees import BATCH, STEPS, made_trees, on_this_machine, two_steps
from tests.run_cli import ROOT

SCRIPTS = ROOT / "scripts"


def of_kind(kind):
    paths = sorted((SCRIPTS / kind).rglob("*.yaml"))
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(SCRIPTS / kind)))


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    return made_trees(tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="session")
def checkpoints(trees, tmp_path_factory):
    """A method's checkpoint, made when it is first asked for."""
    made = {}

    def of(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("pretrained") / method
            made[method] = write_checkpoint(folder, trees / "folders", method)
        return str(made[method])

    return of


@pytest.fixture(autouse=True)
def made_cifar(monkeypatch):
    """torchvision knows CIFAR's files by their sums; the made ones have others."""
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", _classes_of_made_cifar)


def _classes_of_made_cifar(self):
    self.classes = [f"class_{i}" for i in range(10)]
    self.class_to_idx = {name: i for i, name in enumerate(self.classes)}


def composed(path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = plain(compose(path.name))
    GlobalHydra.instance().clear()
    return cfg


def test_every_kind_of_recipe_is_tried_here():
    kinds = {folder.name for folder in SCRIPTS.iterdir() if folder.is_dir()}
    assert kinds == {"pretrain", "linear", "finetune", "compare"}


@of_kind("pretrain")
def test_a_pretraining_trains_and_evaluates(path, trees):
    settings = read_pretraining(two_steps(composed(path), trees))
    done = pretrain(settings)
    assert done["steps"] == STEPS
    assert done["plan"]["global_batch"] == BATCH * settings.accumulate_grad_batches
    assert all(math.isfinite(value) for value in done["last_epoch"].values())
    measured = {row["features"].split(",")[0]: row["knn"] for row in done["accuracy"]}
    assert 0 <= measured["student"] <= 100 and len(measured) >= 2


@of_kind("linear")
def test_a_linear_evaluation_trains_and_evaluates(path, trees, checkpoints):
    recipe = composed(path)
    recipe["pretrained_feature_extractor"] = checkpoints(recipe["pretrain_method"])
    done = linear(read_linear(on_this_machine(recipe, trees)))
    assert 0 <= done["top1"] <= done["top5"] <= 100 and len(done["epochs"]) == 1


@of_kind("finetune")
def test_a_fine_tuning_trains_and_evaluates(path, trees, checkpoints):
    recipe = composed(path)
    if recipe.get("weights") != "random":
        recipe["pretrained_feature_extractor"] = checkpoints("carp")
    done = finetune(read_finetune(on_this_machine(recipe, trees)))
    assert 0 <= done["top1"] <= done["top5"] <= 100 and len(done["epochs"]) == 1


@of_kind("compare")
def test_a_comparison_reads_every_method_and_does_a_run(path, trees):
    """Pretraining, k-NN, gallery and linear evaluation of CARP; the settings of all methods are read and checked."""
    recipe = two_steps({**composed(path), "method": "carp", "method_kwargs": {}}, trees)
    for key in ("method", "method_kwargs", "checkpoint", "auto_resume"):
        del recipe[key]
    for method, own in recipe["settings"].items():
        own["method_kwargs"] = {**own.get("method_kwargs", {}), **METHOD_KWARGS[method]}
    recipe.update(dir="results", seeds=[0], methods=list(recipe["settings"]))
    if recipe.get("trials"):
        recipe["methods"] = list(recipe["trials"])
    if recipe["linear"]:
        recipe["linear"] = on_this_machine(recipe["linear"], trees)
    asked = plan(read_comparison(recipe))
    job = next(job for job in asked.jobs if job.method == "carp")
    folder = Path("run").absolute()
    assert _prepare(job, folder)
    done = work(folder)
    assert done["steps"] == STEPS and {"student", "teacher"} <= set(done["accuracy"])
    assert ("linear" in done["accuracy"]["student"]) == bool(recipe["linear"])
