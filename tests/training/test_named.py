"""A checkpoint that is named to go on from: what is said of its run, and what is refused."""

import json

import pytest

from carp_plugin.errors import UserError
from carp_plugin.host.cfg import plain, pretrain_cfg
from carp_plugin.settings.pretraining import CarpPretraining
from carp_plugin.training.devices import Machine
from carp_plugin.training.named import look_at
from carp_plugin.training.plan import plan_of
from carp_plugin.training.resume import identity_of
from tests.helpers import small_settings

IDENTITY = identity_of(CarpPretraining)
IMAGES = 48


def described(path, devices, **changes):
    """Settings of a run, its plan, and what its args.json holds."""
    (path / "train").mkdir(exist_ok=True)  # the hosts count classes there
    settings = small_settings(path, devices=devices, **changes)
    machine = Machine("cpu", tuple(range(devices)))
    args = plain(pretrain_cfg(settings.values(), "cpu", machine.devices))
    args.update(images=IMAGES, images_fingerprint="a")
    return settings, plan_of(settings, machine, IMAGES, 6), args


@pytest.fixture
def named(tmp_path):
    """Looks at a checkpoint of one run for another."""

    def look(name, there, here, planned=None):
        (tmp_path / "args.json").write_text(json.dumps(described(tmp_path, **there)[2]))
        settings, plan, args = described(tmp_path, **here)
        return look_at(tmp_path / name, planned, args, settings, plan, IDENTITY)

    return look


BATCH_8 = {"devices": 1, "optimizer__batch_size": 8}
WITHIN, WHOLE = "a-ep=1-step=8.ckpt", "a-ep=0.ckpt"


def test_the_same_settings_have_nothing_to_be_said(named):
    assert named(WITHIN, BATCH_8, BATCH_8) == ([], 2 * 6)


def test_as_many_images_a_step_on_more_devices_keep_their_place(named):
    found = named(WITHIN, BATCH_8, {"devices": 2, "optimizer__batch_size": 4})
    (said,) = found.remarks
    assert "(" not in said and "devices was 1, is 2; optimizer.batch_size was 8, is 4." in said


def test_rates_are_said_as_they_were_typed(named):
    """args.json has them x batch / 256."""
    there = {**BATCH_8, "optimizer__lr": 0.0012, "optimizer__classifier_lr": 0.3}
    here = {**BATCH_8, "optimizer__lr": 0.002, "optimizer__classifier_lr": 0.1}
    (said,) = named(WHOLE, there, here).remarks
    assert "goes on as it was: optimizer.classifier_lr=0.3, optimizer.lr=0.0012; to change" in said
    here = {"devices": 2, "optimizer__batch_size": 4}
    assert "lr" not in named(WITHIN, BATCH_8, here).remarks[0]


@pytest.mark.parametrize("name", [WITHIN, WHOLE])
@pytest.mark.parametrize(
    "here, says",
    [
        ({"devices": 2, "optimizer__batch_size": 8}, "those of this run have 16: .* give optimizer.batch_size=4"),
        ({"devices": 1, "optimizer__batch_size": 4}, "have 4: .* give optimizer.batch_size=8"),
        ({**BATCH_8, "accumulate_grad_batches": 2}, "have 16: .* give optimizer.batch_size=4"),
        ({"devices": 3, "optimizer__batch_size": 8}, "have 24: .* give as many images"),
    ],
)  # fmt: skip
def test_steps_of_another_number_of_images_are_refused(name, here, says, named):
    with pytest.raises(
        UserError, match=f"of 8 images .batches of 8 on 1 device.*{says}, or begin a new run"
    ):
        named(name, BATCH_8, here)


def test_steps_of_another_number_of_batches_go_on_between_two_epochs(named):
    here = {"devices": 1, "optimizer__batch_size": 4, "accumulate_grad_batches": 2}
    assert "accumulate_grad_batches was 1, is 2" in named(WHOLE, BATCH_8, here).remarks[-1]
    with pytest.raises(UserError, match="steps of 1 batches, .*give accumulate_grad_batches=1"):
        named(WITHIN, BATCH_8, here)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data__fraction": 0.5}])
def test_another_order_is_refused_within_an_epoch_alone(changes, named):
    (key,) = (name.replace("__", ".") for name in changes)
    with pytest.raises(UserError, match=rf"within an epoch, and {key} was .*give {key}="):
        named(WITHIN, BATCH_8, {**BATCH_8, **changes})
    assert f"{key} was" in named(WHOLE, BATCH_8, {**BATCH_8, **changes}).remarks[0]


def test_the_end_of_the_schedules_is_that_of_the_checkpoint(named):
    longer = {**BATCH_8, "max_epochs": 5}
    assert "end at step 12 of 30;" in named(WHOLE, BATCH_8, longer).remarks[-1]
    # it went on before, in a run whose args.json has five epochs too
    (said,) = named(WHOLE, longer, longer, planned=12).remarks
    assert "end at step 12 of 30;" in said
    assert len(named(WHOLE, longer, BATCH_8).remarks) == 1  # fewer epochs: only named


def test_one_without_its_args_is_gone_on_with_and_said(tmp_path):
    settings, plan, args = described(tmp_path, **BATCH_8)
    found = look_at(tmp_path / WHOLE, None, args, settings, plan, IDENTITY)
    assert found.planned is None and found.remarks[0].startswith("no args.json is beside")
