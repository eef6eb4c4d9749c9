"""Runs of an earlier release, and of the host's own script: their args.json is read, and ours go on.

args/carp_plugin_785eca9.json was written by `main_pretrain.py --config-name carp.yaml` with the overrides below, before
the settings were models; args/solo_learn_9187ea3.json by the host's own main_pretrain.py. DATA stands for the folder of
the images.
"""

import json
from pathlib import Path

import pytest
import torch

from carp_plugin.commands.entries import EVALUATE
from carp_plugin.commands.evaluate import evaluate
from carp_plugin.commands.finetune import finetune
from carp_plugin.evaluation.checkpoint import load_pretrained, read_args
from carp_plugin.evaluation.protocols import PROTOCOLS
from carp_plugin.host import METHODS
from carp_plugin.host.cfg import node, plain
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from carp_plugin.training.resume import compared, difference, identity_of
from tests.finetune_helpers import finetune_settings
from tests.helpers import image_folder
from tests.settings.captured import settings_of

ARGS = Path(__file__).parent / "args"
OLD, HOSTS = ARGS / "carp_plugin_785eca9.json", ARGS / "solo_learn_9187ea3.json"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def written(path, images):
    return json.loads(path.read_text().replace("DATA", str(images)))


def asked(images, *more):
    """The settings of the command that wrote the old run."""
    words = ["--config-name", "carp.yaml", "max_epochs=3", "optimizer.batch_size=8", *more]
    words += [f"data.{name}_path={images}/{name}" for name in ("train", "val")]
    words += ["accelerator=cpu", "method_kwargs.proj_hidden_dim=32"]
    words += ["method_kwargs.num_prototypes=64", "method_kwargs.partition_size=8"]
    return settings_of(words)


def differing(images, *more):
    settings = asked(images, *more)
    there = written(OLD, images)
    here = plain(build_model(settings, machine_of(settings)).cfg)
    here.update({key: there[key] for key in ("images", "images_fingerprint")})
    identity = identity_of(type(settings))
    return difference(compared(there, identity), compared(here, identity), identity)


def test_a_run_of_the_same_command_goes_on_from_an_old_one(images):
    assert differing(images) is None
    free = ["checkpoint.frequency=2", "data.num_workers=1", "evaluation.k=5", "wandb.offline=True"]
    assert differing(images, *free) is None


@pytest.mark.parametrize(
    "override, key",
    [
        ("seed=6", "seed"),
        ("optimizer.lr=0.0011", "optimizer.lr"),
        ("max_epochs=4", "max_epochs"),
        ("method_kwargs.partition=constant", "method_kwargs.partition"),
        ("scheduler.warmup_start_lr=1e-5", "scheduler.warmup_start_lr"),
        ("data.max_bad_fraction=0.02", "data.max_bad_fraction"),
        ("gradient_clip_val=1", "gradient_clip_val"),
        ("augmentations.0.rrc.crop_min_scale=0.2", "augmentations"),
    ],
)
def test_what_makes_a_run_another_one_is_named(override, key, images):
    found = differing(images, override)
    assert found is not None and found[0].startswith(key)


def checkpoint_of(path, images, folder):
    """A checkpoint of the method that the args describe, in a folder with them; the args."""
    args = written(path, images)
    (folder / "args.json").write_text(json.dumps(args))
    model = METHODS[args["method"]](node(args))
    torch.save({"state_dict": model.state_dict(), "epoch": 0}, folder / "x-ep=0.ckpt")
    return args


@pytest.mark.parametrize("path", [OLD, HOSTS], ids=lambda p: p.stem)
def test_every_protocol_evaluates_a_checkpoint_with_either_args(path, images, tmp_path):
    args = checkpoint_of(path, images, tmp_path)
    names = [name for name, protocol in PROTOCOLS.items() if protocol.labelled]
    flags = ["--pretrained_checkpoint_dir", str(tmp_path), "--logistic.C", "1", "--protocols"]
    found = evaluate(EVALUATE.read([*flags, *names]))
    assert found["method"] == args["method"] and list(found["protocols"]) == names
    for name in names:
        measured = found["protocols"][name]["results"]
        assert set(measured) == {"student/backbone", "teacher/backbone"}
    tuned = finetune(finetune_settings(images, tmp_path / "x-ep=0.ckpt", max_epochs=1))
    assert tuned["pretrain_method"] == args["method"]


@pytest.mark.parametrize("path", [OLD, HOSTS], ids=lambda p: p.stem)
def test_a_checkpoint_is_read_with_either_args(path, images, tmp_path):
    args = checkpoint_of(path, images, tmp_path)
    pretrained = load_pretrained(tmp_path)
    assert pretrained.method == args["method"] and set(pretrained.networks) == {
        "student",
        "teacher",
    }
    trained = read_args(tmp_path / "x-ep=0.ckpt")[1]
    assert trained.data.train_path == f"{images}/train" and trained.optimizer.batch_size == 8
    assert trained.data.eval_transform.crop_size == args["data"]["eval_transform"]["crop_size"]
    assert trained.view.mean is None and not trained.performance.disable_channel_last
