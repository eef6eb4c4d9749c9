"""Images without labels train the method alone: no NaN of the online classifier joins its loss."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from carp_plugin.commands.pretrain import pretrain
from tests.helpers import image_folder, small_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def flat(images, tmp_path):
    """A flat folder of unlabelled images."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i, path in enumerate(sorted((images / "train").rglob("*.png"))):
        shutil.copy(path, folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "method",
    "carp byol barlow_twins carl simclrv2 pirl infomin pclv2 selav2".split(),
)
def test_losses_are_finite_and_only_the_classifiers_is_0(method, images, flat):
    def run(**data):
        return pretrain(
            small_settings(
                images, method, max_epochs=1, evaluation={"enabled": False}, seed=3, **data
            )
        )

    summary = run(data__train_path=str(flat), data__val_path=None, data__no_labels=True)
    text = Path(summary["checkpoint"]).with_name("metrics.json").read_text()
    assert "NaN" not in text
    (epoch,) = json.loads(text)
    assert epoch["train_class_loss"] == 0
    state = torch.load(summary["checkpoint"], weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert run()["last_epoch"]["train_class_loss"] > 0  # where there are labels, they are learned
