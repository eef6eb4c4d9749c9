"""The numbers that a run announces."""

import pytest

from carp_plugin.settings.pretraining import checked
from carp_plugin.terminal import say
from carp_plugin.training.report import Row, closing, losses, plan_of, provenance, warnings_of
from tests.helpers import augmentation, image_folder, small_cfg


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def test_plan_counts_steps_batches_and_effective_rates(images):
    cfg = checked(small_cfg(images, accumulate_grad_batches=2, scheduler__min_lr=0.001))
    plan = plan_of(cfg, images=50)
    # 50 // 8 = 6 batches, two a step
    assert (plan.steps_per_epoch, plan.total_steps, plan.global_batch) == (3, 6, 16)
    assert plan.lr == pytest.approx(0.3 * 8 / 256 * 2) and plan.min_lr == pytest.approx(0.002)


def test_paper_recipe_has_the_papers_numbers(images):
    """B.1: 0.6 to 0.06 at 1,024 images; 1,281,167 images are 1,251 steps an epoch."""
    cfg = checked(
        small_cfg(
            images,
            optimizer__batch_size=256,
            optimizer__lr=0.15,
            scheduler__min_lr=0.06,
            max_epochs=200,
        )
    )
    cfg.devices = [0, 1, 2, 3]
    cfg.optimizer.lr *= 4
    plan = plan_of(cfg, images=1_281_167)
    assert (plan.lr, plan.min_lr) == (pytest.approx(0.6), pytest.approx(0.06))
    assert (plan.global_batch, plan.steps_per_epoch) == (1024, 1251)


@pytest.mark.parametrize("small, rows", [(0, 32), (2, 48)])
def test_rows_of_a_global_batch_are_all_views_of_student_and_teacher(small, rows, images):
    views = [augmentation(16, 2)] + ([augmentation(8, small)] if small else [])
    changes = {"augmentations": views, "method_kwargs__num_prototypes": 64}
    fits = checked(small_cfg(images, **changes, method_kwargs__partition_size=32))
    assert warnings_of(fits, plan_of(fits, 24)) == []
    short = checked(small_cfg(images, **changes, method_kwargs__partition_size=64))
    (said,) = warnings_of(short, plan_of(short, 24))
    assert f"{rows} rows" in said and "partition_size=32 or less" in said


def test_min_lr_above_lr_is_warned_about(images):
    cfg = checked(small_cfg(images, scheduler__min_lr=0.06))
    assert any("never min_lr" in said for said in warnings_of(cfg, plan_of(cfg, 24)))


def test_closing_table_shows_what_was_not_measured_as_a_dash(capsys):
    say(closing([Row("student", 71.234, None)], "carp", 20))
    out = capsys.readouterr().out
    assert "71.23" in out and " - " in out


def test_losses_of_the_last_epoch_are_one_line():
    line = losses({"epoch": 3, "train_consistency": 1.5, "train_acc1": 50.0, "val_loss": 2.0})
    assert line == "last epoch: consistency 1.5"


def test_provenance_is_json(images):
    import json

    content = json.loads(json.dumps(provenance(checked(small_cfg(images)))))
    assert content["config"]["seed"] == 0 and content["versions"]["torch"]
