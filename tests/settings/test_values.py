"""What values may be: every key has its kind, and each kind takes what it should and nothing else."""

import re

import pytest
from omegaconf import OmegaConf

from carp_plugin.errors import UserError
from carp_plugin.host import METHODS, method_keys
from carp_plugin.methods.carp import DEFAULTS as CARP
from carp_plugin.settings import linear as linear_config
from carp_plugin.settings import pretraining as config
from carp_plugin.settings import values
from carp_plugin.settings.checks import OPTIMIZERS, dotted, drop_null_nodes, optimizer_kwargs
from carp_plugin.settings.pretraining import _AUGMENTATION, checked
from carp_plugin.settings.values import check_values
from tests.helpers import image_folder, small_cfg
from trials.fuzz_keys import all_keys

#: Nodes and lists that other checks look at, and keys that may hold anything.
_CHECKED_ELSEWHERE = {"augmentations"}
_REFUSED = {"finetune", "mixup", "cutmix", "label_smoothing", "auto_augment"}


@pytest.mark.parametrize(
    "known, table", [(config, values.PRETRAIN), (linear_config, values.LINEAR)]
)
def test_every_known_key_has_a_kind(known, table):
    assert set(known.known_keys()) - set(table) <= _CHECKED_ELSEWHERE | _REFUSED


def test_every_key_of_a_pipeline_has_a_kind():
    assert set(dotted(_AUGMENTATION)) == set(values.AUGMENTATION)


def test_the_fuzz_knows_every_key():
    known = set(config.known_keys()) - {"debug_augmentations"}
    named = {re.sub(r"^augmentations\.0\.", "", key) for key in all_keys()}
    assert known - named <= {"data", "dali"}


NAN, INF = float("nan"), float("inf")
KINDS = [
    (values.whole(1), [1, 2**40], [0, -1, 1.0, True, "1", None, NAN, 10**30]),
    (values.whole(0, 512), [0, 512], [513, -1]),
    (values.number(0), [0, 1e-9, 7, 1e20], [-0.1, NAN, INF, True, "0.1", None, 10**400]),
    (values.number(0, 1, without=0), [1, 0.5], [0, 0.0, 1.1]),
    (values.SWITCH, [True, False], [0, 1, "True", None]),
    (values.TEXT, ["a", "ä"], ["", 3, None, "a\0b", ["a"]]),
    (values.FILE_NAME, ["a-b c.1"], ["a/b", "", "..", "a\nb", "x" * 101, 7]),
    (values.list_of(values.whole(0), 2), [[0, 1]], [[], [0], [0, -1], "01", 1]),
    (values.or_null(values.SWITCH), [None, "None", True], ["null", 0]),
    (values.RUN["devices"], [1, "auto", "0,1", -1, "2"], [True, 1.0, 10**12, "1" * 9, None]),
    (values.RUN["data.fraction"], [-1, 0.5], [1, 1.5, -0.5, "all", NAN]),
    (values.RUN["max_steps"], [-1, 5], [0, -2]),
]


@pytest.mark.parametrize("kind, right, wrong", KINDS, ids=[kind.what for kind, _, _ in KINDS])
def test_a_kind_takes_what_it_says(kind, right, wrong):
    assert all(map(kind.fits, right))
    assert not any(map(kind.fits, wrong))


def test_what_is_left_out_or_missing_is_no_concern():
    cfg = OmegaConf.create({"a": {"b": "???"}})
    check_values(cfg, {"a.b": values.SWITCH, "a.c": values.SWITCH, "d.e": values.SWITCH})


def test_the_sentence_names_key_kind_and_a_part_of_the_value():
    cfg = OmegaConf.create({"a": {"b": "x" * 500}})
    with pytest.raises(UserError, match=r"^in.a.b must be True or False, got 'x{79}…\.$"):
        check_values(cfg, {"a.b": values.SWITCH}, "in.")


def test_a_null_node_is_as_if_left_out(tmp_path):
    cfg = OmegaConf.create({"a": None, "b": {"c": None, "d": None}, "e": None})
    drop_null_nodes(cfg, {"a": {"x": None}, "b": {"c": {"y": None}, "d": None}, "e": None})
    assert cfg == {"b": {"d": None}, "e": None}
    images = image_folder(tmp_path / "images")
    parsed = checked(small_cfg(images, checkpoint=None, momentum=None, evaluation=None))
    assert parsed.checkpoint.enabled is False


def test_a_null_setting_is_its_default(tmp_path):
    images = image_folder(tmp_path / "images")
    parsed = checked(small_cfg(images, seed=None, accumulate_grad_batches=None))
    assert parsed.seed == 5 and parsed.get("accumulate_grad_batches", 1) == 1


def test_images_that_lightning_would_put_in_its_own_order_are_refused(tmp_path):
    with pytest.raises(UserError, match="overfit_batches must be 0, .*limit_train_batches"):
        checked(small_cfg(image_folder(tmp_path / "images"), overfit_batches=1))


def test_a_card_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    images = image_folder(tmp_path / "images")
    for devices, card in ((3, 2), ([0, 7], 7), ("0,2", 2)):
        with pytest.raises(
            UserError, match=f"names card {card}, counted from 0, but 2 are visible"
        ):
            checked(small_cfg(images, accelerator="gpu", devices=devices))


@pytest.mark.parametrize("key", ["logger", "callbacks", "plugins", "self"])
def test_what_is_ours_of_the_trainer_is_no_key(key, tmp_path):
    with pytest.raises(UserError, match=f"{key} is not a key of the configuration"):
        checked(small_cfg(image_folder(tmp_path / "images"), **{key: 1}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_of_an_optimizer_has_a_kind(name):
    assert {f"optimizer.kwargs.{key}" for key in optimizer_kwargs(name)} <= set(values.RUN)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"base", "linear", "mae"}))
def test_every_setting_of_a_method_has_a_kind(name):
    own = {"partition_size", *CARP} if name == "carp" else set()  # which it checks itself
    table = {key.partition("method_kwargs.")[2] for key in values.PRETRAIN}
    assert method_keys(name) - own <= table


def test_optimizers_take_their_own_settings_only(tmp_path):
    images = image_folder(tmp_path / "images")
    checked(small_cfg(images, optimizer__kwargs={"nesterov": True}))
    with pytest.raises(UserError, match=r"kwargs.eta is not a key of sgd; choose from"):
        checked(small_cfg(images, optimizer__kwargs={"eta": 0.1}))
