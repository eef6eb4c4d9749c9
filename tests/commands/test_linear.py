"""`python main_linear.py`: a run from the terminal, every recipe, and what a user's mistakes earn."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.data.folders import check_data
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.linear import build_model, check_named
from carp_plugin.methods.known import check_optimizer
from carp_plugin.settings.linear import read_linear
from carp_plugin.settings.reading import plain
from carp_plugin.training.devices import machine_of
from carp_plugin.training.plan import plan_of
from tests.data.made_idx import write_idx
from tests.helpers import image_folder, small_settings
from tests.linear_helpers import linear_cfg, write_checkpoint
from tests.run_cli import ROOT, run_cli

RECIPES = sorted((ROOT / "scripts" / "linear").rglob("*.yaml"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "swav", images, "swav")


@pytest.fixture
def config_dir(tmp_path, images, checkpoint):
    """A folder with one small configuration, as a user would write it."""
    folder = tmp_path / "configs"
    folder.mkdir()
    content = OmegaConf.to_container(linear_cfg(images, checkpoint))
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_pretrained_run_is_evaluated_by_the_folder_it_left(
    images, config_dir, capsys, monkeypatch
):
    pretrained = pretrain(small_settings(images, max_epochs=1, evaluation={"enabled": False}))
    run = Path(pretrained["checkpoint"]).parent
    arguments = ["--config-path", str(config_dir), "--config-name", "small.yaml"]
    arguments += [f"pretrained_feature_extractor={run}", "network=teacher", "max_epochs=1"]
    code, out, err = run_cli(capsys, monkeypatch, "main_linear.py", arguments)
    assert code == 0, (out, err)
    for word in ("teacher of carp", "tensors loaded from", "24 images to train", "the last epoch"):
        assert word in out, out
    (path,) = Path("trained_models/linear").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["network"] == "teacher" and summary["pretrain_method"] == "carp"
    assert summary["pretrained"]["checkpoint"] == pretrained["checkpoint"]
    assert summary["config"]["optimizer"]["batch_size"] == 8 and summary["versions"]["torch"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_recipe_composes_and_is_parsed_by_the_host(
    path, images, checkpoint, tmp_path, monkeypatch
):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name)
    GlobalHydra.instance().clear()
    assert OmegaConf.is_missing(cfg, "pretrained_feature_extractor")
    assert cfg.pretrain_method == {"barlow": "barlow_twins"}.get(path.stem, path.stem)
    # a checkpoint, a device and, where it is a folder, data of this test stand in for the user's
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cfg.accelerator == "gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    OmegaConf.set_struct(cfg, False)
    cfg.pretrained_feature_extractor, cfg.pretrain_method = str(checkpoint), "swav"
    cfg.data.prepare = None
    if cfg.data.dataset == "fashion_mnist":
        cfg.data.train_path = cfg.data.val_path = str(write_idx(tmp_path / "idx"))
    elif not cfg.data.dataset.startswith("cifar"):
        cfg.data.train_path, cfg.data.val_path = str(images / "train"), str(images / "val")
    settings = read_linear(plain(cfg))
    check_optimizer(settings.optimizer)
    check_data(settings.data)
    pretrained = load_pretrained(settings.pretrained_feature_extractor)
    check_named(settings, pretrained)
    plan = plan_of(settings, machine_of(settings), images=24, classes=6)
    parsed = build_model(settings, pretrained, plan, pretrained.network()).cfg
    # appendix C.1, by the rule lr x batch x devices / 256
    assert parsed.optimizer.name == "sgd" and len(parsed.devices) == 1
    batch = 64 if path.parent.name == "photos" else 256
    assert parsed.optimizer.batch_size == batch
    assert parsed.optimizer.lr == plan.lr == pytest.approx(0.3 * batch / 256)
    assert parsed.max_epochs == (10 if path.parent.name in ("photos", "fashion_mnist") else 100)
    assert (parsed.scheduler.name, parsed.scheduler.warmup_epochs) == ("warmup_cosine", 0)
    assert parsed.optimizer.kwargs.momentum == 0.9 and parsed.optimizer.weight_decay == 0


def test_every_folder_has_the_same_recipes():
    folders = {folder.name for folder in (ROOT / "scripts" / "linear").iterdir()}
    assert folders >= {"photos", "cifar", "imagenet-100", "imagenet", "custom", "fashion_mnist"}
    for folder in folders:
        found = {path.stem for path in RECIPES if path.parent.name == folder}
        assert found == set("carp byol swav barlow simclr mocov2plus simsiam deepclusterv2".split())


def torn(folder, checkpoint):
    shutil.copytree(checkpoint.parent, "torn")
    path = Path("torn") / checkpoint.name
    path.write_bytes(path.read_bytes()[:10_000])
    return [f"pretrained_feature_extractor={path}"]  # …-ep=1.ckpt, as it is


def without_args(folder, checkpoint):
    Path("alone").mkdir()
    shutil.copy(checkpoint, "alone/swav.ckpt")
    return ["pretrained_feature_extractor=alone"]


def other_classes(folder, checkpoint):
    shutil.copytree(folder / "val", "other/val")
    shutil.move("other/val/class_0", "other/val/cats")
    return ["data.val_path=other/val"]


def corrupt_image(folder, checkpoint):
    shutil.copytree(folder, "corrupt")
    next(Path("corrupt/val/class_0").iterdir()).write_bytes(b"not an image")
    return ["data.val_path=corrupt/val"]


def blocked_folder(folder, checkpoint):
    Path("file").write_text("")
    return ["checkpoint.dir=file/models"]


# (what the user does, arguments or a function that makes them, what the sentence must say)
MISTAKES = [
    ("typo in the config name", ["--config-name", "smal.yaml"], r"did you mean 'small.yaml'"),
    ("typo in a key", ["netwrk=teacher"], r"netwrk is not a key.*'network'"),
    ("typo in an added key", ["++data.train_transforms=1"], r"data.train_transforms is not a key"),
    ("a key of pretraining", ["++momentum.base_tau=1"], r"momentum.base_tau is not a key"),
    ("a value for a node", ["data.train_transform=16"], r"data.train_transform must hold keys"),
    (
        "no checkpoint",
        ["pretrained_feature_extractor=???"],
        r"is missing: add pretrained_feature_extractor=PATH.*main_pretrain.py",
    ),
    ("the word None", ["pretrained_feature_extractor=None"], r"add pretrained_feature_extractor="),
    ("missing checkpoint", ["pretrained_feature_extractor=no.ckpt"], r"no.ckpt does not exist"),
    ("folder without one", ["pretrained_feature_extractor=configs"], r"holds no .ckpt file"),
    ("torn checkpoint", torn, r"cannot be read"),
    ("checkpoint without its configuration", without_args, r"no args.json beside"),
    ("unknown network", ["network=techer"], r"network=techer is unknown; did you mean 'teacher'"),
    ("no such network", ["network=teacher"], r"swav has no teacher"),
    ("another method", ["++pretrain_method=carp"], r"pretrain_method=carp, but \S+ holds swav"),
    ("another backbone", ["++backbone.name=resnet50"], r"backbone.name=resnet50, but .*resnet18"),
    ("fine-tuning", ["++finetune=True"], r"finetune=True is no linear evaluation"),
    ("mixup", ["++mixup=0.5"], r"mixup=0.5 is no linear evaluation"),
    ("batch of the wrong type", ["optimizer.batch_size=many"], r"must be a whole number.*'many'"),
    ("negative learning rate", ["optimizer.lr=-1"], r"must be a number of at least 0"),
    ("unknown schedule", ["scheduler.name=cosin"], r"scheduler.name=cosin is unknown"),
    ("steps without epochs", ["scheduler.name=step"], r"needs scheduler.lr_decay_steps"),
    ("no validation data", ["data.val_path=null"], r"data.val_path is missing"),
    ("missing data folder", ["data.train_path=no"], r"no does not exist.*data.train_path=PATH"),
    ("other classes to validate", other_classes, r"class folders of .* differ \(cats, class_0\)"),
    ("corrupt image", corrupt_image, r"the image \S*corrupt/val/class_0/\d.png cannot be read"),
    ("batch above the data", ["optimizer.batch_size=64"], r"24 images, fewer.*batch_size=24"),
    (
        "crop of no size",
        ["data.train_transform.crop_size=0"],
        r"transform.crop_size must be a whole number between 1 and 4096, got 0",
    ),
    ("crop without one", ["data.train_transform.crop_size=null"], r"crop_size is missing"),
    ("falling scale", ["data.train_transform.scale=[0.9,0.5]"], r"scale must rise, as in"),
    ("one scale", ["data.train_transform.scale=0.5"], r"scale must be a list of 2 items.*got 0.5"),
    (
        "crop above the image",
        ["data.eval_transform.resize=8"],
        r"resize=8 is smaller than data.eval_transform.crop_size=16",
    ),
    ("own crops with DALI", ["++data.format=dali"], r"train_transform has no effect with"),
    ("unwritable folder", blocked_folder, r"checkpoint.dir=file/models cannot be made"),
    ("missing run to resume", ["++resume_from_checkpoint=no.ckpt"], r"no.ckpt does not exist"),
    ("a GPU that is not there", ["accelerator=gpu"], r"no CUDA device is visible"),
    ("devices that are none", ["devices=all"], r"devices=all cannot be read"),
]


@pytest.mark.parametrize("arguments, says", [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_earns_one_sentence(
    arguments, says, config_dir, images, checkpoint, capsys, monkeypatch
):
    if callable(arguments):
        arguments = arguments(images, checkpoint)
    elif "gpu" in str(arguments):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = list(arguments)
    if "--config-name" not in given:
        given = ["--config-name", "small.yaml", *given]
    given = ["--config-path", str(config_dir), *given]
    code, out, err = run_cli(capsys, monkeypatch, "main_linear.py", given)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, (out, err)
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in out + err


def test_without_a_configuration_those_of_the_photographs_are_named(capsys, monkeypatch):
    code, _, err = run_cli(capsys, monkeypatch, "main_linear.py", [])
    assert code == 2
    assert "one of barlow.yaml, byol.yaml, carp.yaml, deepclusterv2.yaml" in err
