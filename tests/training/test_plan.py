"""The numbers of a run, derived from its settings; that they are the host's: tests/host/test_cfg.py."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from carp_plugin.settings.linear import read_linear
from carp_plugin.training.devices import Machine, machine_of
from carp_plugin.training.plan import plan_of, warnings_of
from tests.helpers import augmentation, image_folder, small_settings

ONE = Machine("cpu", (0,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def planned(settings, images=50, machine=ONE):
    return plan_of(settings, machine, images, classes=6)


def test_plan_counts_steps_batches_and_effective_rates(images):
    settings = small_settings(images, accumulate_grad_batches=2, scheduler__min_lr=0.001)
    plan = planned(settings, machine=machine_of(settings))
    # 50 // 8 = 6 batches, two a step
    assert (plan.steps_per_epoch, plan.total_steps, plan.global_batch) == (3, 6, 16)
    assert plan.batches_per_epoch == 6
    assert plan.lr == pytest.approx(0.3 * 8 / 256 * 2) and plan.min_lr == pytest.approx(0.002)
    assert (plan.images, plan.classes) == (50, 6)


def test_paper_recipe_has_the_papers_numbers(images):
    """B.1: 0.6 to 0.06 at 1,024 images; 1,281,167 images are 1,251 steps an epoch."""
    settings = small_settings(
        images,
        optimizer__batch_size=256,
        optimizer__lr=0.15,
        scheduler__min_lr=0.06,
        max_epochs=200,
    )
    plan = planned(settings, 1_281_167, Machine("gpu", (0, 1, 2, 3)))
    assert (plan.lr, plan.min_lr) == (pytest.approx(0.6), pytest.approx(0.06))
    assert (plan.global_batch, plan.steps_per_epoch) == (1024, 1251)
    assert plan.total_steps == 200 * 1251
    # two nodes of eight cards with 64 images each are the same run
    settings = small_settings(
        images, optimizer__batch_size=64, optimizer__lr=0.15, scheduler__min_lr=0.06, max_epochs=200
    )
    nodes = planned(settings, 1_281_167, Machine("gpu", tuple(range(8)), nodes=2))
    assert {**nodes.as_dict(), "machine": None} == {**plan.as_dict(), "machine": None}


class Tiny(LightningModule):
    """Something that Lightning trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, index):
        return self.weight * batch.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "changes, steps, total",
    [
        ({}, 6, 12),  # 50 // 8 batches
        ({"limit_train_batches": 4}, 4, 8),  # a number of batches
        ({"limit_train_batches": 100}, 6, 12),  # more than there are
        ({"limit_train_batches": 1}, 1, 2),  # one batch
        ({"limit_train_batches": 1.0}, 6, 12),  # all of them
        ({"limit_train_batches": 0.5}, 3, 6),  # a share
        ({"limit_train_batches": 0.6}, 3, 6),  # 3.6 batches: the last is none
        ({"accumulate_grad_batches": 3}, 2, 4),
        ({"accumulate_grad_batches": 4}, 2, 4),  # 4 + 2: the rest of an epoch is a step
        ({"accumulate_grad_batches": 100}, 1, 2),
        ({"accumulate_grad_batches": 2, "limit_train_batches": 5}, 3, 6),
        ({"max_steps": 7}, 6, 7),
        ({"max_steps": 100}, 6, 12),  # the epochs end first
        ({"max_steps": -1}, 6, 12),
        ({"max_steps": 1, "accumulate_grad_batches": 3}, 2, 1),
    ],
)
def test_steps_of_an_epoch_and_of_the_run(changes, steps, total, images):
    plan = planned(small_settings(images, **changes))
    assert (plan.steps_per_epoch, plan.total_steps) == (steps, total)
    # and as many Lightning takes
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )
    trainer.fit(Tiny(), DataLoader(torch.ones(50), batch_size=8, drop_last=True))
    assert trainer.global_step == total


@pytest.mark.parametrize("devices, nodes, steps", [(1, 1, 6), (2, 1, 3), (2, 2, 1), (1, 5, 1)])
def test_images_are_shared_among_processes_and_uneven_ends_dropped(devices, nodes, steps, images):
    """50 images: 25, 12 and 10 a process, in batches of 8."""
    machine = Machine("cpu", tuple(range(devices)), nodes)
    plan = planned(small_settings(images, accumulate_grad_batches=1), machine=machine)
    assert (plan.steps_per_epoch, plan.global_batch) == (steps, 8 * devices * nodes)


def test_the_classifiers_rate_is_scaled_where_there_is_something_to_validate_on(images):
    plan = planned(small_settings(images, accumulate_grad_batches=2))
    assert plan.classifier_lr == pytest.approx(0.3 * 8 / 256 * 2)
    plan = planned(small_settings(images, accumulate_grad_batches=2, data__val_path=None))
    assert plan.classifier_lr == pytest.approx(0.3 * 2)


def test_a_linear_evaluation_has_no_rate_of_another_classifier(images):
    settings = read_linear(
        {
            "name": "linear",
            "pretrained_feature_extractor": "a.ckpt",
            "data": {
                "dataset": "custom",
                "train_path": str(images / "train"),
                "val_path": str(images / "val"),
                "num_workers": 0,
            },
            "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.3, "weight_decay": 0},
            "scheduler": {"name": "warmup_cosine"},
            "max_epochs": 2,
        }
    )
    plan = planned(settings, machine=Machine("cpu", (0, 1)))
    assert plan.lr == pytest.approx(0.3 * 16 / 256) and plan.classifier_lr == 0
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 6)


@pytest.mark.parametrize("small, rows", [(0, 32), (2, 48)])
def test_rows_of_a_global_batch_are_all_views_of_student_and_teacher(small, rows, images):
    views = [augmentation(16, 2)] + ([augmentation(8, small)] if small else [])
    changes = {"augmentations": views, "method_kwargs__num_prototypes": 64}
    fits = small_settings(images, **changes, method_kwargs__partition_size=32)
    assert warnings_of(fits, planned(fits, 24)) == []
    short = small_settings(images, **changes, method_kwargs__partition_size=64)
    (said,) = warnings_of(short, planned(short, 24))
    assert f"{rows} rows" in said and "partition_size=32 or less" in said


def test_min_lr_above_lr_is_warned_about(images):
    settings = small_settings(images, scheduler__min_lr=0.06)
    assert any("never min_lr" in said for said in warnings_of(settings, planned(settings, 24)))


@pytest.mark.parametrize("data", [{"data__no_labels": True}, {"data__val_path": None}])
def test_knn_without_labels_is_warned_about(data, images):
    settings = small_settings(images, "byol", knn_eval={"enabled": True}, **data)
    (said,) = warnings_of(settings, planned(settings, 24))
    assert said.startswith("knn_eval is switched off")


@pytest.mark.parametrize("warmup, said", [(0, False), (1.9, False), (2, True), (10, True)])
def test_a_warm_up_as_long_as_the_run_is_questioned(warmup, said, tmp_path):
    settings = small_settings(tmp_path, scheduler__warmup_epochs=warmup, max_epochs=2)
    plan = plan_of(settings, Machine("cpu", (0,)), 24, 6)
    assert any("the learning rate only rises" in one for one in warnings_of(settings, plan)) == said
