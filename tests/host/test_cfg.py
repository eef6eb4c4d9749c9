"""The host's configuration and models against our own numbers of a run: what the plan says is what the host does."""

import pytest

from carp_plugin.data.folders import count_classes
from carp_plugin.evaluation import linear as evaluation
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.host import METHODS, method_keys
from carp_plugin.host.cfg import pretrain_cfg
from carp_plugin.settings.parts import CLASSES
from carp_plugin.training.devices import machine_of
from carp_plugin.training.plan import plan_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import METHOD_KWARGS, augmentation, image_folder, small_settings
from tests.linear_helpers import linear_settings, write_checkpoint

RATES = {"optimizer__lr": 0.3, "scheduler__min_lr": 0.006, "optimizer__batch_size": 8}
#: (devices, nodes, accumulated batches)
MACHINES = [(1, 1, 1), (2, 1, 1), (1, 1, 3), (2, 1, 3), (1, 2, 1), (2, 3, 3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("runs") / "byol", images, "byol")
    return load_pretrained(path)


def planned(settings):
    """Our numbers."""
    classes = count_classes(settings.data.dataset, settings.data.train_path)
    return plan_of(settings, machine_of(settings), images=50, classes=classes)


def plan_and_cfg(settings):
    """Our numbers, and the host's configuration of the same settings."""
    plan = planned(settings)
    return plan, pretrain_cfg(settings.values(), plan.machine.accelerator, plan.machine.devices)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("method", ["carp", "byol"])
@pytest.mark.parametrize("devices, nodes, accumulated", MACHINES)
def test_the_rates_of_the_plan_are_those_of_the_method(
    devices, nodes, accumulated, method, validated, images
):
    settings = small_settings(
        images,
        method,
        **RATES,
        optimizer__classifier_lr=0.2,
        devices=devices,
        num_nodes=nodes,
        accumulate_grad_batches=accumulated,
        **({} if validated else {"data__val_path": None}),
    )
    plan, cfg = plan_and_cfg(settings)
    model = build_model(settings, plan.machine)
    assert plan.lr == pytest.approx(model.lr, rel=1e-12)
    assert plan.classifier_lr == pytest.approx(model.classifier_lr, rel=1e-12)
    assert plan.min_lr == pytest.approx(model.min_lr, rel=1e-12)
    # and the host's are what they should be
    assert model.lr == pytest.approx(0.3 * 8 * devices * nodes / 256 * accumulated)
    assert model.min_lr == pytest.approx(0.006 * accumulated)
    assert model.max_epochs == settings.max_epochs and model.cfg.seed == settings.seed
    # a configuration that is built apart is the one that the method has
    for key in ("lr", "classifier_lr"):
        assert cfg.optimizer[key] == model.cfg.optimizer[key]
    assert list(cfg.devices) == list(range(devices)) and cfg.num_nodes == nodes


@pytest.mark.parametrize("method", [name for name in METHODS if name in METHOD_KWARGS])
def test_every_key_of_a_method_stands_in_the_configuration_that_it_has(method, images):
    """So a run that is resumed is compared by the host's own defaults, whatever we take them for."""
    settings = small_settings(images, method)
    kwargs = build_model(settings, machine_of(settings)).cfg.method_kwargs
    assert method_keys(method) <= set(kwargs) and (len(kwargs) >= 2 or method == "supervised")
    given = settings.method_kwargs.model_dump(mode="json")
    assert {key: kwargs[key] for key in given} == given


@pytest.mark.parametrize("devices, nodes, accumulated", MACHINES)
def test_the_rates_of_the_plan_are_those_of_the_linear_model(
    devices, nodes, accumulated, images, pretrained
):
    settings = linear_settings(
        images,
        pretrained.path,
        **RATES,
        devices=devices,
        num_nodes=nodes,
        accumulate_grad_batches=accumulated,
    )
    plan = planned(settings)
    model = evaluation.build_model(settings, pretrained, plan, pretrained.backbone())
    assert plan.lr == pytest.approx(model.lr, rel=1e-12)
    assert plan.min_lr == pytest.approx(model.min_lr, rel=1e-12)
    assert plan.classes == model.cfg.data.num_classes == model.classifier.out_features == 6
    assert plan.classifier_lr == 0 and model.lr == pytest.approx(0.3 * 8 * devices * nodes / 256)


@pytest.mark.parametrize(
    "views, crops",
    [
        ([augmentation(16, 2)], (2, 0)),
        ([augmentation(16, 1), augmentation(16, 1)], (2, 0)),
        ([augmentation(16, 2), augmentation(8, 3)], (2, 3)),
        (
            [augmentation(16, 1), augmentation(8, 3), augmentation(16, 1), augmentation(4, 1)],
            (2, 4),
        ),
        ([augmentation(16, 1), augmentation(16, 1), augmentation(32, 2)], (2, 2)),
    ],
)
def test_large_and_small_views_are_the_hosts(views, crops, images):
    settings = small_settings(images, augmentations=views)
    _, cfg = plan_and_cfg(settings)
    assert (settings.large_crops, settings.small_crops) == crops
    assert (cfg.data.num_large_crops, cfg.data.num_small_crops) == crops


@pytest.mark.parametrize("dataset", [*CLASSES, "custom"])
def test_classes_are_the_hosts(dataset, images):
    settings = small_settings(images, data__dataset=dataset)
    plan, cfg = plan_and_cfg(settings)
    assert plan.classes == cfg.data.num_classes == CLASSES.get(dataset, 6)


def test_a_folder_without_classes_has_one(tmp_path, images):
    settings = small_settings(images, data__train_path=str(tmp_path), data__no_labels=True)
    plan, cfg = plan_and_cfg(settings)
    assert plan.classes == cfg.data.num_classes == 1
