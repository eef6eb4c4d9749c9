"""`python main_finetune.py`: every recipe, and what a user's mistakes earn."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from carp_plugin.settings.finetune import read_finetune
from carp_plugin.settings.reading import plain
from tests.finetune_helpers import finetune_cfg
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint
from tests.run_cli import ROOT, run_cli

RECIPES = sorted((ROOT / "scripts" / "finetune").rglob("*.yaml"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def configs(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("pretrained") / "swav", images, "swav")
    content = OmegaConf.to_container(finetune_cfg(images, checkpoint))
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    (folder / "empty.txt").write_text("\n")
    (folder / "twice.txt").write_text("class_0/1.png\nclass_0/1.png\n")
    (folder / "bare.txt").write_text("1.png\n")
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_recipe_has_the_rates_of_the_paper(path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name)
    GlobalHydra.instance().clear()
    if cfg.get("weights") != "random":
        assert OmegaConf.is_missing(cfg, "pretrained_feature_extractor")
        cfg.pretrained_feature_extractor = "run"
    for key in ("train_path", "val_path"):
        if OmegaConf.is_missing(cfg.data, key):
            cfg.data[key] = "images"
    settings = read_finetune(plain(cfg))
    scale = settings.optimizer.batch_size / 256
    custom = path.parent.name == "custom"  # at a batch of its own, by the same rule
    expected = (0.002 * scale, 0.5 * scale) if custom else (0.002, 0.5)
    rates = settings.optimizer.lr * scale, settings.optimizer.classifier_lr * scale
    assert rates == pytest.approx(expected, rel=1e-12)
    assert (settings.scheduler.lr_decay_steps, settings.scheduler.gamma) == ((12, 16), 0.2)
    assert settings.max_epochs == 20 and settings.optimizer.weight_decay == 0
    fractions = {"carp_1percent": 0.01, "carp_10percent": 0.1, "carp_100percent": 1.0}
    small = {"photos": 0.1, "fashion_mnist": 0.01}.get(path.parent.name, 1.0)
    assert settings.labels.fraction == fractions.get(path.stem, small)


MISTAKES = [
    (["labels.fracton=0.1"], r"labels.fracton is not a key.*'fraction'"),
    (["labels.fraction=0"], r"labels.fraction must be a number between 0 and 1, not 0"),
    (["labels.file=no.txt"], r"labels.file=no.txt cannot be read \(No such file"),
    (["labels.file=CONFIGS/empty.txt"], r"empty.txt names no image"),
    (["labels.file=CONFIGS/twice.txt"], r"names class_0/1.png twice"),
    (["labels.file=CONFIGS/bare.txt"], r"names 1.png, which is the name of 6 images.*class/file"),
    (["labels.file=x", "labels.fraction=0.1"], r"two ways to choose"),
    (["labels.fraction=0.01"], r"labels.fraction=0.01 of .* holds 6 images.*batch_size=6 or less"),
    (["pretrained_feature_extractor=null"], r"is missing: add pretrained.*; or weights=random"),
    (["pretrained_feature_extractor=no.ckpt"], r"no.ckpt does not exist"),
    (["pretrained_feature_extractor=null", "weights=random"], r"add backbone.name=resnet50"),
    (["network=teacher"], r"swav has no teacher"),
    (["backbone.name=resnet50"], r"backbone.name=resnet50, but .*resnet18"),
    (["data.fraction=0.5"], r"set labels.fraction=0.5 in its place"),
    (["scheduler.lr_decay_steps=[16,12]"], r"must be rising epochs.*got \[16, 12\]"),
    (["optimizer.kwargs.eta=1"], r"optimizer.kwargs.eta is not a key of sgd"),
    (["optimizer.name=lars"], r"optimizer.name"),
    (["precision=bf16-true"], r"would convert the pretrained weights"),
    (["data.train_path=no"], r"no does not exist.*data.train_path=PATH"),
    (["checkpoint.dir=/dev/null/x"], r"checkpoint.dir=/dev/null/x cannot be made"),
]


@pytest.mark.parametrize("arguments, says", MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_earns_one_sentence(arguments, says, configs, capsys, monkeypatch):
    given = [argument.replace("CONFIGS", str(configs)) for argument in arguments]
    given = ["--config-path", str(configs), "--config-name", "small.yaml", *given]
    code, out, err = run_cli(capsys, monkeypatch, "main_finetune.py", given)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, (out, err)
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in out + err
