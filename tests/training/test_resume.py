"""What makes two runs one: every key of a pretraining, given, left out, and as an older release wrote it."""

import copy
import json
import os
import time
from typing import Any, Dict, Literal, Union, get_args, get_origin

import pytest
import torch
from omegaconf import OmegaConf

from carp_plugin.host.cfg import plain, pretrain_cfg
from carp_plugin.settings import kinds
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.model import walk
from carp_plugin.settings.pretraining import CarpPretraining, Pretraining, read_pretraining
from carp_plugin.training.callbacks.checkpoint import AtomicCheckpointIO
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from carp_plugin.training.resume import (
    compared,
    difference,
    identity_of,
    in_words,
    machine_here,
    other_bits,
    run_to_resume,
)
from tests.helpers import image_folder, small_cfg, small_settings

IDENTITY = identity_of(CarpPretraining)


def is_leaf(field):
    items = kinds.item(field.annotation)
    return kinds.node(field.annotation) is None and (items is None or kinds.node(items) is None)


#: Dotted key -> (field, whether runs that differ in it are two).
LEAVES = {key: (field, own) for key, field, own in walk(CarpPretraining) if is_leaf(field)}
FREE = [key for key, (_, own) in LEAVES.items() if not own]
OWN = [key for key, (_, own) in LEAVES.items() if own]
#: A run always has these two, as its machine is.
ALWAYS = ("accelerator", "devices")
WITH_DEFAULT = [key for key in OWN if IDENTITY.defaults.get(key) is not None and key not in ALWAYS]

#: Another value, where the kind of a key does not tell one that can be had beside the other keys.
ANOTHER: Dict[str, Any] = {
    "devices": 2,
    "max_steps": 7,
    "max_time": "00:01:00:00",
    "data.fraction": 0.5,
    "method": "byol",
    "method_kwargs.num_prototypes": 64,
    "method_kwargs.partition_size": 4,
    "backbone.kwargs": {"zero_init_residual": True},
    "momentum.base_tau": 0.8,
    "momentum.final_tau": 0.95,
    "data.eval_transform.resize": 20,
    "data.eval_transform.crop_size": 8,
    "scheduler.name": "none",
    "augmentations.0.rand_augment.magnitude": 5,
    "augmentations.0.rrc.crop_min_scale": 0.25,
    "augmentations.0.rrc.crop_max_scale": 0.75,
}
#: Where images lie, and what they are known by wherever that is.
PATHS = {
    "data.train_path": "images_fingerprint",
    "data.val_path": "val_images_fingerprint",
}
#: Keys that have one value only, or that another machine decides on; and views, of which another number is refused.
ONE_VALUE = ("overfit_batches", "accelerator", "augmentations.0.num_crops")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def values(images):
    """What a user wrote."""
    return OmegaConf.to_container(small_cfg(images))


@pytest.fixture(scope="module")
def args(images):
    """What the run wrote to its ``args.json``."""
    settings = small_settings(images)
    cfg = build_model(settings, machine_of(settings)).cfg
    return {**plain(cfg), "images": 24, "images_fingerprint": "a"}


def args_of(values):
    """The host's configuration of what a user wrote; the method adds its own defaults to it when it is built."""
    settings = read_pretraining(values)
    machine = machine_of(settings)
    return plain(pretrain_cfg(settings.values(), machine.accelerator, machine.devices))


def changed(node, dotted, value):
    """A copy with another value at a key; ``...`` takes the key out."""
    made = copy.deepcopy(node)
    *path, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    at = made
    for part in path:
        at = at[part] if isinstance(part, int) else at.setdefault(part, {})
    if value is not ...:
        at[last] = value
    else:
        at.pop(last, None)
    return made


def differing(there, here, identity=IDENTITY):
    """The key in which two runs differ, None where they are one; it is the same from both sides."""
    there, here = (compared(json.loads(json.dumps(each)), identity) for each in (there, here))
    found = difference(there, here, identity)
    back = difference(here, there, identity)
    assert (found is None) == (back is None) and (found is None or found[0] == back[0])
    return None if found is None else found[0]


def test_there_are_keys_of_both_kinds():
    assert len(FREE) > 25 and len(OWN) > 80
    assert {"data.num_workers", "checkpoint.dir", "evaluation.k", "collapse.stop"} <= set(FREE)
    assert {"seed", "method_kwargs.fused", "optimizer.lr", "augmentations.0.mean"} <= set(OWN)


# --------------------------------------------------------------------------------- as args.json has them


@pytest.mark.parametrize("key", FREE)
def test_a_free_key_never_makes_another_run(key, args):
    for value in ("another", None, ...):
        assert differing(args, changed(args, key, value)) is None
        assert differing(changed(args, key, "one"), changed(args, key, value)) is None


@pytest.mark.parametrize("key", OWN)
def test_any_other_key_makes_another_run(key, args):
    another = [0, 1, 2] if key == "devices" else "another"
    if key in PATHS:  # by which the images are known where nothing else tells
        args = changed(args, "images_fingerprint", None)
    assert differing(args, changed(args, key, another)) == key


@pytest.mark.parametrize("key, known_by", PATHS.items())
def test_the_same_images_elsewhere_are_the_same_run(key, known_by, args):
    there, here = changed(args, known_by, "a"), changed(args, known_by, "a")
    here = changed(here, key, "elsewhere")
    assert differing(there, here) is None
    assert differing(there, changed(here, known_by, None)) is not None
    other = changed(here, known_by, "b")
    assert differing(there, other) == key  # the first of two, for training images
    assert differing(there, changed(here, key, None)) == key


def test_other_images_of_the_same_names_and_sizes_are_another_run(args):
    there, here = (changed(args, "images_bytes", value) for value in "ab")
    assert differing(there, here) == "images_bytes"
    assert differing(args, here) is None  # a run of an older release does not know
    other = changed(changed(here, "images_fingerprint", "b"), "images", 25)
    assert differing(there, other) == "images"


def test_other_validation_images_in_their_place_change_no_weight(args):
    there, here = (changed(args, "val_images_fingerprint", value) for value in "ab")
    assert differing(there, here) is None


@pytest.mark.parametrize("key", WITH_DEFAULT)
def test_an_absent_key_is_its_default(key, args):
    default = IDENTITY.defaults[key]
    if key == "backbone.kwargs":  # a node, of which nothing is left
        assert differing(changed(args, key, ...), changed(args, key, {})) is None
        return
    with_it = changed(args, key, default)
    for without in (changed(args, key, ...), changed(args, key, None)):
        assert differing(with_it, without) is None
        assert differing(changed(args, key, "another"), without) == key


@pytest.mark.parametrize("key", [key for key in OWN if IDENTITY.defaults.get(key) is None])
def test_an_absent_key_without_a_default_is_null(key, args):
    assert differing(changed(args, key, None), changed(args, key, ...)) is None
    assert differing(changed(args, key, "another"), changed(args, key, ...)) == key


def test_the_args_of_an_older_release_that_knew_fewer_keys_match(args):
    older = copy.deepcopy(args)
    for node in ("dali", "performance", "evaluation", "collapse", "knn_eval", "auto_umap", "wandb"):
        older.pop(node, None)
    for key in WITH_DEFAULT:
        if compared(args, IDENTITY).get(key) == IDENTITY.defaults[key]:
            older = changed(older, key, ...)
    for node in ("checkpoint", "auto_resume"):
        older.pop(node)
    assert len(json.dumps(older)) < 0.8 * len(json.dumps(args))
    assert differing(older, args) is None
    for key in ("method_kwargs.fused", "dali.device", "momentum.classifier", "num_nodes"):
        assert differing(older, changed(args, key, "another")) == key


def test_a_key_that_nobody_thought_of_makes_another_run(args):
    assert differing(args, {**args, "images": 25}) == "images"
    assert differing(args, {**args, "new": {"node": 1}}) == "new.node"
    assert differing(args, {**args, "wandb_run_id": "x"}) is None


def test_which_cards_does_not_matter_but_how_many(args):
    assert differing({**args, "devices": [0, 1]}, {**args, "devices": [2, 3]}) is None
    assert differing({**args, "devices": [0, 1]}, {**args, "devices": [0]}) == "devices"


def test_a_pipeline_more_and_a_key_of_one_are_named(args):
    (view,) = args["augmentations"]
    assert differing(args, {**args, "augmentations": [view, view]}).startswith("augmentations.1.")
    # a key of a later release in each item is its default where it is absent
    identity = IDENTITY._replace(defaults={**IDENTITY.defaults, "augmentations.0.new": 0.5})
    several = {**args, "augmentations": [view, view]}
    newer = {**args, "augmentations": [{**view, "new": 0.5}, {**view, "new": 0.5}]}
    assert differing(several, newer, identity) is None
    newer["augmentations"][1]["new"] = 0.6
    assert differing(several, newer, identity) == "augmentations.1.new"


@pytest.mark.parametrize("model", [Pretraining, CarpPretraining, Linear, Finetune])
def test_free_keys_of_every_kind_of_run_are_the_same_and_no_others(model):
    """A key is free where it stands in this list: to make one free is a decision, not a slip."""
    shared = {"log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler"}
    shared |= {"max_time"}  # counts for each process anew
    shared |= {"checkpoint", "auto_resume", "wandb", "resume_from_checkpoint"}
    shared |= {"data.num_workers", "data.prepare", "wandb_run_id", "machine"}
    pretraining = {"evaluation", "collapse", "knn_eval", "auto_umap", "debug_augmentations"}
    free = set(identity_of(model).free)
    tops = {key for key in free if key.rpartition(".")[0] not in free}
    assert tops == (shared if model in (Linear, Finetune) else shared | pretraining)


# --------------------------------------------------------------------------------- as a user writes them


def another(field, now):
    """A value of the kind of a key, unlike the one it has."""
    kind = kinds.inner(field.annotation)
    if get_origin(kind) is Union:
        kind = kinds.inner(get_args(kind)[-1])
    now = (None if field.is_required() else field.get_default()) if now is None else now
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != now)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        return [1] if items[-1] is Ellipsis else [0.5] * len(items)
    if kind is bool:
        return not now
    if kind is int:
        return 7 if now is None else now + 1
    if kind is float:
        return now / 2 if now else 0.25
    assert kind is str, field
    return "another"


@pytest.mark.parametrize("key", [key for key in LEAVES if key not in ONE_VALUE])
def test_a_key_that_a_user_sets_reaches_the_comparison(key, values, images):
    field, own = LEAVES[key]
    now = OmegaConf.select(OmegaConf.create(values), key.replace(".0.", "[0]."))
    value = ANOTHER[key] if key in ANOTHER else another(field, now)
    if key == "data.train_path":
        value = str(images / "val")
    if key == "data.holdout.seed":  # of a hold-out, which needs its fraction
        values = changed(values, "data.holdout", {"fraction": 0.5, "seed": 0})
    found = differing(args_of(values), args_of(changed(values, key, value)))
    if not own:
        assert found is None
    elif key == "backbone.kwargs":
        assert found == "backbone.kwargs.zero_init_residual"
    else:
        assert found == key


@pytest.mark.parametrize("key", [key for key in LEAVES if key in IDENTITY.defaults])
def test_a_default_that_a_user_spells_out_is_the_same_run(key, values):
    if key == "data.holdout.seed":  # of a hold-out, which needs its fraction
        values = changed(values, "data.holdout", {"fraction": 0.5})
    without = changed({**values, "method_kwargs": {}}, key, ...)
    default = IDENTITY.defaults[key]
    assert differing(args_of(without), args_of(changed(without, key, default))) is None
    assert differing(args_of(without), args_of(changed(without, key, None))) is None


# --------------------------------------------------------------------------------- the search for a run


@pytest.fixture
def earlier(args, tmp_path):
    """Writes a run of some settings, with one checkpoint."""

    def write(name, content):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        checkpoint = {"state_dict": {"weight": torch.zeros(2)}, "epoch": 0, "global_step": 3}
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "a-ep=0.ckpt")
        (folder / "args.json").write_text(json.dumps(content))
        return folder / "a-ep=0.ckpt"

    return write


def search(tmp_path, args):
    return run_to_resume(tmp_path / "runs", args, IDENTITY, max_hours=1, lead=True)


def test_a_run_of_an_older_release_is_found(earlier, args, tmp_path):
    older = {**args, "method_kwargs": {**args["method_kwargs"]}, "wandb_run_id": "w"}
    del older["method_kwargs"]["fused"], older["performance"]
    path = earlier("older", older)
    found = search(tmp_path, args)
    assert (found.checkpoint, found.wandb_run_id, found.remarks) == (path, "w", [])


def test_another_run_of_the_name_is_passed_over_and_the_key_said(earlier, args, tmp_path):
    earlier("other", changed(args, "method_kwargs.fused", False))
    found = search(tmp_path, args)
    assert found.checkpoint is None
    (said,) = found.remarks
    assert "(method_kwargs.fused was False, is True)" in said
    path = earlier("same", changed(args, "data.num_workers", 3))
    assert search(tmp_path, args).checkpoint == path


def test_every_setting_that_differs_is_named_and_only_where_nothing_is_resumed(
    earlier, args, tmp_path
):
    other = changed(changed(args, "seed", 9), "method_kwargs.fused", False)
    other = changed(changed(other, "images", 25), "images_fingerprint", "b")
    earlier("other", other)
    (said,) = search(tmp_path, args).remarks
    words = "(images was 25, is 24; method_kwargs.fused was False, is True; seed was 9, is 0)."
    assert said.endswith(words)
    earlier("same", args)
    os.utime(tmp_path / "runs/same/a-ep=0.ckpt", (1, time.time() - 60))
    assert search(tmp_path, args).remarks == []
    many = [(f"key{i}", i, 0) for i in range(11)]
    assert in_words(many).endswith("key7 was 7, is 0; and 3 more")


def test_a_run_that_is_too_old_or_has_lost_its_args_is_said(earlier, args, tmp_path):
    path = earlier("old", args)
    os.utime(path, (1, time.time() - 5.5 * 3600))
    (said,) = search(tmp_path, args).remarks
    assert "is 5.5 hours old; auto_resume.max_hours=7 would have gone on from it." in said
    earlier("foreign", changed(args, "seed", 9))
    os.utime(tmp_path / "runs/foreign/a-ep=0.ckpt", (1, time.time() - 7 * 3600))
    assert len(search(tmp_path, args).remarks) == 1  # an old run of other settings is nobody's
    path = path.rename(path.with_name("carp-test-x-ep=0.ckpt"))
    path.with_name("args.json").write_text("{")
    (said,) = search(tmp_path, args).remarks
    assert "whose args.json cannot be read" in said and f"resume_from_checkpoint={path}" in said


def test_what_the_last_bits_depend_on_is_said():
    one, two = {"threads": 1, "torch": "2.4"}, {"threads": 2, "torch": "2.4"}
    assert other_bits(one, one) is None and other_bits({}, one) is None
    assert other_bits(one, two).startswith("1 thread then, 2 now (OMP_NUM_THREADS=1): sums differ")
    assert other_bits(two, one).startswith("2 threads then, 1 now (OMP_NUM_THREADS=2)")
    assert "torch 2.4 then, 2.5 now" in other_bits({"torch": "2.4"}, {"torch": "2.5"})
    assert machine_here("cpu") == {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    assert "threads" not in machine_here("gpu")


def test_a_folder_that_is_not_ours_is_passed_over(earlier, args, tmp_path):
    path = earlier("broken", args)
    path.with_name("args.json").write_text("{")
    assert search(tmp_path, args) == (None, None, [])
