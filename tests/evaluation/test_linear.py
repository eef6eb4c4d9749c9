"""Linear evaluation in process: what it returns, a backbone that stays frozen, and a resumed run like a whole one."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from carp_plugin.commands.linear import linear
from carp_plugin.data.labelled import labelled_data
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.linear import build_model, fingerprint
from carp_plugin.host import DALI_AVAILABLE, LinearModel
from carp_plugin.training.devices import machine_of
from carp_plugin.training.plan import plan_of
from carp_plugin.training.state import file_sha256
from tests.helpers import image_folder
from tests.linear_helpers import linear_settings, write_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def checkpoints(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    return {name: write_checkpoint(root / name, images, name) for name in ("carp", "swav")}


def built(settings):
    """The linear model of an evaluation, and the checkpoint that it is of."""
    pretrained = load_pretrained(settings.pretrained_feature_extractor)
    plan = plan_of(settings, machine_of(settings), images=24, classes=6)
    network = pretrained.network(settings.network)
    return build_model(settings, pretrained, plan, network), pretrained


def data_of(settings):
    """Its labelled images."""
    statistics = load_pretrained(settings.pretrained_feature_extractor).trained.view
    return labelled_data(settings.data, statistics, settings.optimizer.batch_size, 1, settings.seed)


def tensors(path, prefix):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


@pytest.mark.parametrize(
    "method, network, prefix",
    [
        ("carp", "student", "backbone."),
        ("carp", "teacher", "momentum_backbone."),
        ("swav", "student", "backbone."),
    ],
)
def test_a_run_measures_the_network_asked_for_and_leaves_it_as_it_was(
    method, network, prefix, images, checkpoints, capsys
):
    path = checkpoints[method]
    done = linear(linear_settings(images, path, network=network))
    # what it returns
    assert len(done["correct"]) == 24 and set(map(type, done["correct"])) == {bool}
    assert done["top1"] == pytest.approx(100 * sum(done["correct"]) / 24, abs=1e-3)
    assert [epoch["step"] for epoch in done["epochs"]] == [3, 6] and done["steps"] == 6
    assert done["top1"] == pytest.approx(done["epochs"][-1]["val_acc1"], abs=1e-3)
    assert done["top5"] == pytest.approx(done["epochs"][-1]["val_acc5"], abs=1e-3)
    best = max(done["epochs"], key=lambda epoch: epoch["val_acc1"])
    assert done["best_epoch"] == best["epoch"]
    assert done["best_top1"] == pytest.approx(best["val_acc1"], abs=1e-3)
    assert done["best_top5"] == pytest.approx(best["val_acc5"], abs=1e-3)
    # what it measured: every bit of the backbone is that of the checkpoint
    theirs, ours = tensors(path, prefix), tensors(done["checkpoint"], "backbone.")
    assert set(theirs) == set(ours) and "bn1.running_mean" in ours
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert done["pretrained"]["frozen_backbone_sha256"] == fingerprint(theirs)
    assert done["pretrained"]["sha256"] == file_sha256(path)
    # what it leaves and says
    summary = json.loads(Path(done["checkpoint"]).with_name("summary.json").read_text())
    assert summary == {k: v for k, v in done.items() if k not in ("correct", "epochs")}
    metrics = json.loads(Path(done["checkpoint"]).with_name("metrics.json").read_text())
    assert metrics == done["epochs"]
    assert f"{network} of {method}" in capsys.readouterr().out


def test_the_layer_begins_the_same_on_every_backbone_and_is_reproducible(images, checkpoints):
    layers = []
    for method in ("carp", "swav"):
        torch.rand(7)
        model, _ = built(linear_settings(images, checkpoints[method]))
        layers.append(model.classifier.weight)
    assert torch.equal(*layers)
    runs = [linear(linear_settings(images, checkpoints["carp"])) for _ in range(2)]
    assert runs[0]["correct"] == runs[1]["correct"]
    states = [tensors(run["checkpoint"], "classifier.") for run in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in ("weight", "bias"))


def test_learning_rate_is_scaled_by_the_batch(images, checkpoints):
    settings = linear_settings(images, checkpoints["carp"], max_epochs=1)
    model, _ = built(settings)
    assert model.lr == model.cfg.optimizer.lr == pytest.approx(0.3 * 8 / 256)
    done = linear(settings)
    assert done["plan"]["lr"] == pytest.approx(0.3 * 8 / 256)
    # the caller's own is left alone, and is what is reported
    assert settings == linear_settings(images, checkpoints["carp"], max_epochs=1)
    assert done["config"]["optimizer"]["lr"] == 0.3 and "features" not in done["config"]


@contextmanager
def at_every_step(do):
    """``do(model)`` before each training step of the host's linear model."""
    training_step = LinearModel.training_step

    def step(self, batch, batch_idx):
        do(self)
        return training_step(self, batch, batch_idx)

    LinearModel.training_step = step
    try:
        yield
    finally:
        LinearModel.training_step = training_step


def test_backbone_is_in_evaluation_mode_and_without_gradients_while_the_layer_trains(
    images, checkpoints
):
    seen = []
    forward = torch.nn.BatchNorm2d.forward

    def spy(self, x):
        seen.append((self.training, torch.is_grad_enabled()))
        return forward(self, x)

    torch.nn.BatchNorm2d.forward = spy
    try:
        linear(
            linear_settings(images, checkpoints["carp"], max_epochs=1, checkpoint__enabled=False)
        )
    finally:
        torch.nn.BatchNorm2d.forward = forward
    assert set(seen) == {(False, False)}


def statistics_run(model):
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked += 1


def a_weight_moves(model):
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0, 0, 0] += 1e-6


@pytest.mark.parametrize("tamper", [statistics_run, a_weight_moves])
def test_a_backbone_that_moves_is_an_error(tamper, images, checkpoints):
    settings = linear_settings(images, checkpoints["carp"], max_epochs=1)
    with at_every_step(tamper), pytest.raises(UserError, match="did not stay frozen.*student"):
        linear(settings)
    assert not list(Path("trained_models").rglob("summary.json"))


def test_fingerprint_sees_every_bit_and_no_memory_format():
    state = {"w": torch.randn(4, 3, 2, 2), "n": torch.tensor(3), "h": torch.ones(2).bfloat16()}
    first = fingerprint(state)
    last_format = {**state, "w": state["w"].to(memory_format=torch.channels_last)}
    assert fingerprint(last_format) == first
    assert fingerprint(dict(reversed(state.items()))) == first
    for name, other in (
        ("w", -state["w"]),
        ("w", state["w"].reshape(4, 3, 4)),
        ("n", torch.tensor(4)),
    ):
        assert fingerprint({**state, name: other}) != first
    assert fingerprint({"v" if k == "w" else k: v for k, v in state.items()}) != first


@contextmanager
def interrupted_at(step):
    """Ctrl-C in the middle of training."""

    def do(model):
        if model.trainer.global_step == step:
            raise KeyboardInterrupt

    with at_every_step(do):
        yield


def without_seconds(epochs):
    return [{k: v for k, v in epoch.items() if k != "train_seconds"} for epoch in epochs]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_ends_as_the_uninterrupted_one(workers, images, checkpoints, capsys):
    changes = {"max_epochs": 4, "auto_resume__enabled": True, "data__num_workers": workers}
    done = []
    for name in ("whole", "broken"):
        settings = linear_settings(images, checkpoints["carp"], checkpoint__dir=name, **changes)
        if name == "broken":
            says = "epoch 2 at step 7.*ep=1.ckpt"
            with interrupted_at(step=7), pytest.raises(KeyboardInterrupt, match=says):
                linear(settings)
        done.append(linear(settings))
    assert "resuming from broken/linear" in capsys.readouterr().out
    whole, broken = done
    assert without_seconds(whole["epochs"]) == without_seconds(broken["epochs"])
    assert whole["correct"] == broken["correct"]
    states = [tensors(run["checkpoint"], "") for run in done]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_finished_run_is_shown_again(images, checkpoints, capsys):
    changes = {"auto_resume__enabled": True, "max_epochs": 1}
    settings = linear_settings(images, checkpoints["carp"], **changes)
    first, second = linear(settings), linear(settings)
    assert "had finished already" in capsys.readouterr().out
    for key in ("top1", "top5", "best_top1", "best_epoch", "correct", "epochs", "checkpoint"):
        assert first[key] == second[key]


def test_another_network_checkpoint_or_transform_is_another_run(
    images, checkpoints, tmp_path, capsys
):
    path = write_checkpoint(tmp_path / "run", images, seed=1)
    base = {"auto_resume__enabled": True, "max_epochs": 1}
    linear(linear_settings(images, path, **base))
    linear(linear_settings(images, path, **base, network="teacher"))
    linear(linear_settings(images, path, **base, data__train_transform__scale=[0.6, 1.0]))
    path.write_bytes(checkpoints["carp"].read_bytes())  # the same path, other weights
    linear(linear_settings(images, path, **base))
    assert "resuming from" not in capsys.readouterr().out


def test_a_run_on_another_backbone_is_not_gone_on_with(images, checkpoints):
    first = linear(linear_settings(images, checkpoints["carp"], max_epochs=1))
    settings = linear_settings(
        images,
        checkpoints["carp"],
        network="teacher",
        resume_from_checkpoint=first["checkpoint"],
    )
    with pytest.raises(UserError, match="another backbone than the teacher of"):
        linear(settings)


def test_with_fewer_classes_than_five_every_label_is_among_the_first(
    images, checkpoints, tmp_path, capsys
):
    few = image_folder(tmp_path / "few", classes=3)
    done = linear(linear_settings(few, checkpoints["carp"], max_epochs=1))
    assert done["classes"] == 3 and done["top5"] == done["best_top5"] == 100.0
    assert done["top1"] == pytest.approx(100 * sum(done["correct"]) / 12, abs=1e-3)
    assert "top-5 (3 classes: always 100)" in capsys.readouterr().out


def test_images_are_cropped_as_asked_and_normalised_as_in_pretraining(images, tmp_path):
    from tests.helpers import augmentation

    view = {**augmentation(), "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    path = write_checkpoint(tmp_path / "run", images, augmentations=[view])
    data = data_of(linear_settings(images, path, data__train_transform__crop_size=12))
    batch, labels = next(iter(data.train))
    assert batch.shape == (8, 3, 12, 12) and labels.shape == (8,) and len(data.train) == 3
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    for dataset, size in ((data.train.dataset.dataset, 12), (data.val.dataset, 16)):
        assert torch.equal(dataset.dataset.transform(white), torch.full((3, size, size), 2.0))
    assert (data.images, data.val_images) == (24, 24)
    assert [label for _, labels in data.val for label in labels.tolist()] == sorted(
        [0, 1, 2, 3, 4, 5] * 4
    )


def test_without_own_transforms_the_hosts_of_224_pixels_are_used(images, checkpoints):
    none = {"data__train_transform": None, "data__eval_transform": None}
    data = data_of(linear_settings(images, checkpoints["carp"], **none))
    image = Image.new("RGB", (300, 260))
    assert data.train.dataset.dataset.dataset.transform(image).shape == (3, 224, 224)
    assert data.val.dataset.dataset.transform(image).shape == (3, 224, 224)


def test_backbone_and_method_are_those_of_the_checkpoint(images, checkpoints):
    model, pretrained = built(linear_settings(images, checkpoints["swav"]))
    assert (model.cfg.backbone.name, model.cfg.pretrain_method) == ("resnet18", "swav")
    assert pretrained.networks == load_pretrained(checkpoints["swav"]).networks == ("student",)


@pytest.mark.skipif(not DALI_AVAILABLE, reason="NVIDIA DALI is not installed (extra: dali)")
def test_dali_on_the_cpu_serves_every_step_of_every_epoch(images, checkpoints):
    """solo-learn issue 265: every second epoch was once skipped."""
    done = linear(
        linear_settings(
            images,
            checkpoints["carp"],
            max_epochs=3,
            data__format="dali",
            data__num_workers=1,
            data__train_transform=None,
            dali={"device": "cpu"},
        )
    )
    assert [epoch["step"] for epoch in done["epochs"]] == [3, 6, 9]
    assert len(done["correct"]) == 24


def test_what_was_said_at_the_beginning_is_in_the_summary(images, checkpoints, capsys):
    done = linear(
        linear_settings(
            images, checkpoints["carp"], max_epochs=1, data__val_path=str(images / "train")
        )
    )
    summary = json.loads(Path(done["checkpoint"]).with_name("summary.json").read_text())
    (said,) = summary["remarks"]
    assert said.startswith("warning: 24 of 24 validation images are among the training images")
    assert said in capsys.readouterr().out
