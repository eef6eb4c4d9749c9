"""What a run says of itself: the opening block, the closing table, the losses and where it came from."""

import json

import pytest

from carp_plugin.terminal import say
from carp_plugin.training.devices import Machine, machine_of
from carp_plugin.training.plan import plan_of
from carp_plugin.training.report import Row, closing, doubts_on, losses, opening, provenance
from tests.helpers import image_folder, small_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(
    "scheduler, rates",
    [
        ({"name": "warmup_cosine", "min_lr": 0.001}, "0.01875 to 0.002 (sgd, warmup_cosine"),
        ({"name": "step", "lr_decay_steps": [1, 2]}, "0.01875, lowered at epochs [1, 2]"),
        ({"name": "none"}, "0.01875 throughout"),
    ],
)
def test_opening_block_has_the_numbers_of_the_plan(scheduler, rates, images, capsys):
    changes = {"accumulate_grad_batches": 2, "scheduler": scheduler}
    settings = small_settings(images, **changes)
    say(opening(settings, plan_of(settings, machine_of(settings), images=50, classes=6)))
    out = capsys.readouterr().out
    assert "50 images, 6 classes" in out and "2 of 16 px" in out
    assert "1 x cpu" in out and "precision 32-true" in out
    assert "16 images" in out and rates in out
    assert "K = 32, B = 8: 4 blocks, random partition" in out
    assert "3 an epoch, 6 in 2 epochs; seed 0" in out


def test_closing_table_shows_what_was_not_measured_as_a_dash(capsys):
    say(closing([Row("student", 71.234, None)], "carp", 20))
    out = capsys.readouterr().out
    assert "71.23" in out and " - " in out


def test_losses_of_the_last_epoch_are_one_line():
    line = losses({"epoch": 3, "train_consistency": 1.5, "train_acc1": 50.0, "val_loss": 2.0})
    assert line == "last epoch: consistency 1.5"


def test_provenance_is_json_and_holds_what_the_user_wrote(images):
    settings = small_settings(images, devices=2)
    found = provenance(machine_of(settings), settings.values())
    content = json.loads(json.dumps(found))
    assert content["config"]["seed"] == 0 and content["versions"]["torch"]
    # neither scaled nor turned into a list: that stands in the plan
    assert content["config"]["optimizer"]["lr"] == 0.3 and content["config"]["devices"] == 2
    assert content["machine"]["device"] == "2 x cpu"


def test_the_plan_is_json_too(images):
    settings = small_settings(images)
    plan = plan_of(settings, Machine("cpu", (0, 1), nodes=2), images=50, classes=6)
    content = json.loads(json.dumps(plan.as_dict()))
    assert content["machine"] == {"accelerator": "cpu", "devices": [0, 1], "nodes": 2}
    assert {"lr", "classifier_lr", "min_lr", "global_batch", "total_steps"} <= set(content)


def test_features_below_those_of_the_random_network_are_questioned():
    rows = [Row("random, before training", 60.0, 1.0), Row("student", 59.0, 90.0)]
    (said,) = doubts_on([*rows, Row("teacher", 60.0, None), Row("teacher", None, 1.0)])
    assert (
        "the student's features are worth less" in said and "(59.00 against 60.00 % k-NN)" in said
    )
    assert (
        doubts_on([]) == doubts_on(rows[1:]) == doubts_on([Row("random", None, 1.0), rows[1]]) == []
    )
