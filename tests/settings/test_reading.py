"""From a composed configuration to plain values: interpolations once, the environment where no key has the name."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from carp_plugin.errors import UserError
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from tests.helpers import small_cfg


def test_an_interpolation_is_what_was_written_not_what_follows_from_it(tmp_path):
    """lr and classifier_lr are scaled by the batch later, each once."""
    changes = {"optimizer__lr": 0.0012, "optimizer__classifier_lr": "${optimizer.lr}"}
    settings = read_pretraining(plain(small_cfg(tmp_path, **changes)))
    assert settings.optimizer.lr == settings.optimizer.classifier_lr == 0.0012


def test_a_variable_of_the_environment_is_put_in_where_no_key_has_its_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("name", "not this one")
    cfg = OmegaConf.create({"name": "x", "a": {"b": ["${HOME}/${name}"], "c": "${oc.env:HOME}"}})
    assert plain(cfg) == {"name": "x", "a": {"b": ["/home/me/x"], "c": "/home/me"}}


def test_what_is_not_there_is_named():
    with pytest.raises(InterpolationKeyError, match="NO_SUCH_VARIABLE"):
        plain(OmegaConf.create({"a": "${NO_SUCH_VARIABLE}"}))


def test_a_list_is_no_configuration():
    with pytest.raises(UserError, match="must hold keys and values, got a list"):
        plain(OmegaConf.create([1, 2]))


def test_a_value_that_is_still_missing_is_missing(tmp_path):
    with pytest.raises(UserError, match="data.train_path is missing from the configuration"):
        read_pretraining(plain(small_cfg(tmp_path, data__train_path="???")))
