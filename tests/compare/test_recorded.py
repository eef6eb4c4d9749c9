"""The settings of the recipe are those that its recorded search chose, at the budget of that search."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.run_cli import ROOT

SEARCH = json.loads((ROOT / "docs" / "photos" / "search.json").read_text())


@pytest.fixture(scope="module")
def recipe():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "scripts" / "compare"), version_base="1.2"):
        cfg = compose("photos.yaml", overrides=["hydra.searchpath=[pkg://carp_plugin.configs]"])
    return cfg


@pytest.mark.parametrize("method", SEARCH["search"]["methods"])
def test_settings_are_those_chosen(recipe, method):
    for key, value in SEARCH["search"]["methods"][method]["best"].items():
        assert OmegaConf.select(recipe.settings[method], key) == value, key


def test_every_method_had_as_many_trials():
    numbers = {len(found["trials"]) for found in SEARCH["search"]["methods"].values()}
    assert numbers == {5} and set(SEARCH["search"]["methods"]) == {
        "carp",
        "byol",
        "swav",
        "barlow_twins",
    }


def test_the_search_had_the_budget_of_the_recipe_and_other_images(recipe):
    searched = SEARCH["config"]
    for key in ("max_epochs", "augmentations", "backbone"):
        assert OmegaConf.to_container(OmegaConf.create({key: recipe[key]}))[key] == searched[key], (
            key
        )
    assert recipe.optimizer.batch_size == searched["optimizer"]["batch_size"]
    assert "holdout" in searched["data"]["val_path"] != recipe.data.val_path


@pytest.mark.parametrize("key", ["linear", "knn", "gallery"])
def test_a_part_can_be_left_out_on_the_command_line(key):
    """A group of configurations of the same name would take the override for itself."""
    GlobalHydra.instance().clear()
    overrides = ["hydra.searchpath=[pkg://carp_plugin.configs]", f"{key}=null"]
    with initialize_config_dir(str(ROOT / "scripts" / "compare"), version_base="1.2"):
        assert compose("photos.yaml", overrides=overrides)[key] is None
