"""Fine-tuning in process: every parameter moves, rates as C.2 says, a resumed run like a whole one, subsets."""

import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from carp_plugin.commands.finetune import finetune
from carp_plugin.errors import UserError
from carp_plugin.evaluation.finetune import FineTuning, hits
from carp_plugin.training.state import file_sha256
from tests.distributed import run_on_ranks
from tests.finetune_helpers import finetune_settings
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "carp", images)


def tensors(path, prefix=""):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


@contextmanager
def at_every_step(do):
    """``do(model)`` before each training step."""
    training_step = FineTuning.training_step

    def step(self, batch, batch_idx):
        do(self)
        return training_step(self, batch, batch_idx)

    FineTuning.training_step = step
    try:
        yield
    finally:
        FineTuning.training_step = training_step


@pytest.mark.parametrize(
    "network, prefix", [("student", "backbone."), ("teacher", "momentum_backbone.")]
)
def test_every_parameter_and_statistic_of_the_network_moves(
    network, prefix, images, checkpoint, capsys
):
    begins = []
    with at_every_step(
        lambda m: begins or begins.append({k: v.clone() for k, v in m.state_dict().items()})
    ):
        done = finetune(finetune_settings(images, checkpoint, network=network))
    theirs, ours = tensors(checkpoint, prefix), tensors(done["checkpoint"], "backbone.")
    assert set(theirs) == set(ours) and len(ours) > 100
    begun = {k[9:]: v for k, v in begins[0].items() if k.startswith("backbone.")}
    for key, tensor in theirs.items():
        assert torch.equal(begun[key], tensor), key
        assert not torch.equal(ours[key], tensor), key
    # what it returns, leaves and says
    assert done["top1"] == pytest.approx(100 * sum(done["correct"]) / 24, abs=1e-3)
    assert done["top1"] == pytest.approx(done["epochs"][-1]["val_acc1"], abs=1e-3)
    assert done["top5"] == pytest.approx(done["epochs"][-1]["val_acc5"], abs=1e-3)
    best = max(done["epochs"], key=lambda epoch: epoch["val_acc1"])
    assert (done["best_epoch"], done["best_top1"]) == (
        best["epoch"],
        pytest.approx(best["val_acc1"], abs=1e-3),
    )
    assert {"train_loss", "train_acc1", "train_acc5", "val_loss"} <= set(best)
    assert done["pretrained"]["sha256"] == file_sha256(checkpoint)
    assert done["labels"]["images"] == 24 and len(done["labels"]["sha256"]) == 64
    summary = json.loads(Path(done["checkpoint"]).with_name("summary.json").read_text())
    assert summary == {k: v for k, v in done.items() if k not in ("correct", "epochs")}
    said = capsys.readouterr().out
    assert f"{network} of carp, fine-tuned" in said and "with the labels of all 24 images" in said


def test_rates_by_epoch_are_those_of_the_paper(images, checkpoint):
    """C.2: 0.002 and 0.5 at batch 256, x 0.2 after the 12th and the 16th of 20 epochs; here a batch of 8."""
    seen = []

    def note(model):
        groups = model.trainer.optimizers[0].param_groups
        assert [group["name"] for group in groups] == ["backbone", "classifier"]
        params = [sum(p.numel() for p in group["params"]) for group in groups]
        parts = (model.backbone, model.classifier)
        assert params == [sum(p.numel() for p in part.parameters()) for part in parts]
        seen.append((model.current_epoch + 1, *(group["lr"] for group in groups)))

    changes = {"optimizer__lr": 0.002 * 32, "optimizer__classifier_lr": 0.5 * 32}
    more = {"max_epochs": 20, "limit_train_batches": 1, "check_val_every_n_epoch": 20}
    with at_every_step(note):
        done = finetune(finetune_settings(images, checkpoint, **changes, **more))
    assert len(seen) == 20
    for epoch, lr, classifier_lr in seen:
        factor = 1 if epoch <= 12 else 0.2 if epoch <= 16 else 0.04
        assert lr == pytest.approx(0.002 * factor, rel=1e-12), epoch
        assert classifier_lr == pytest.approx(0.5 * factor, rel=1e-12), epoch
    assert [row["epochs"] for row in done["rates"]] == [[1, 12], [13, 16], [17, 20]]
    assert [row["lr"] for row in done["rates"]] == pytest.approx([0.002, 0.0004, 0.00008])
    assert (done["plan"]["lr"], done["plan"]["min_lr"]) == pytest.approx((0.002, 0.00008))


def measured(epochs):
    """What was measured of whole epochs; averages over training steps are those since the last resume."""
    return [{k: v for k, v in e.items() if k[:4] in ("epoc", "step", "val_")} for e in epochs]


def stop(model):
    """What a queue's signal does: the run saves within the epoch and leaves."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_killed_three_times_within_epochs_and_resumed_it_ends_with_the_same_weights(
    images, checkpoint, capsys
):
    changes = {"max_epochs": 4, "auto_resume__enabled": True, "scheduler__lr_decay_steps": [1, 3]}
    whole = finetune(finetune_settings(images, checkpoint, checkpoint__dir="whole", **changes))
    settings = finetune_settings(images, checkpoint, checkpoint__dir="broken", **changes)
    for at in (1, 5, 10):  # of 12 steps, 3 an epoch
        with at_every_step(lambda m, at=at: m.trainer.global_step == at and stop(m)):
            with pytest.raises(KeyboardInterrupt, match=f"interrupted in epoch {at // 3}"):
                finetune(settings)
    broken = finetune(settings)
    assert capsys.readouterr().out.count("resuming from broken/finetune") == 3
    assert measured(whole["epochs"]) == measured(broken["epochs"])
    assert whole["correct"] == broken["correct"]
    states = [tensors(run["checkpoint"]) for run in (whole, broken)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_another_network_checkpoint_subset_or_start_is_another_run(
    images, checkpoint, tmp_path, capsys
):
    path = write_checkpoint(tmp_path / "run", images, seed=1)
    base = {"auto_resume__enabled": True, "max_epochs": 1, "check_val_every_n_epoch": 1}
    base["optimizer__batch_size"] = 6
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"class_{i}/0.png" for i in range(6)))
    for changes in (
        {},
        {"network": "teacher"},
        {"labels__fraction": 0.5},
        {"labels__fraction": 0.5, "labels__seed": 1},
        {"labels__file": str(listed)},
        {"weights": "random"},
        {"scheduler__gamma": 0.5},
    ):
        finetune(finetune_settings(images, path, **base, **changes))
    listed.write_text("\n".join(f"class_{i}/1.png" for i in range(6)))  # another list, same name
    finetune(finetune_settings(images, path, **base, labels__file=str(listed)))
    path.write_bytes(checkpoint.read_bytes())  # the same path, other weights
    finetune(finetune_settings(images, path, **base))
    assert "resuming from" not in capsys.readouterr().out
    shutil.move(listed, tmp_path / "moved.txt")
    finetune(finetune_settings(images, path, **base, labels__file=str(tmp_path / "moved.txt")))
    said = capsys.readouterr().out
    assert "resuming from" not in said or "had finished already" in said


def test_one_image_a_class_is_trained_on(images, checkpoint):
    settings = finetune_settings(
        images, checkpoint, labels__fraction=0.01, optimizer__batch_size=6, max_epochs=1
    )
    done = finetune(settings)
    assert done["labels"]["images_a_class"] == [1, 1] and done["labels"]["classes"] == 6
    assert done["images"]["train"] == 6 and done["steps"] == 1
    assert done["labels"]["name"] == "1 % of every class, seed 0"


def test_fewer_labels_than_a_batch_are_said_to_be(images, checkpoint):
    settings = finetune_settings(images, checkpoint, labels__fraction=0.01)
    with pytest.raises(
        UserError, match="labels.fraction=0.01 of data.train_path=.* holds 6 images.*batch_size=6"
    ):
        finetune(settings)


def test_a_list_without_a_class_is_warned_of(images, checkpoint, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"class_{c}/{i}.png" for c in range(4) for i in range(4)))
    done = finetune(finetune_settings(images, checkpoint, labels__file=str(listed), max_epochs=1))
    assert "has no image of 2 of the 6 classes" in capsys.readouterr().out
    assert done["remarks"][0].startswith("warning: the list list.txt has no image of 2")
    assert done["classes"] == 6 and done["images"]["train"] == 16


def test_of_three_classes_there_is_no_top_5(checkpoint, tmp_path, capsys):
    few = image_folder(tmp_path / "few", classes=3)
    done = finetune(finetune_settings(few, checkpoint, max_epochs=1))
    assert done["top5"] is done["best_top5"] is None and "val_acc5" not in done["epochs"][0]
    assert done["top1"] == pytest.approx(100 * sum(done["correct"]) / 12, abs=1e-3)
    assert "top-5" not in capsys.readouterr().out


def test_a_class_without_validation_images_is_said_and_the_others_measured(
    images, checkpoint, tmp_path, capsys
):
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val" / "class_2")
    done = finetune(finetune_settings(tmp_path / "images", checkpoint, max_epochs=1))
    assert "accuracies are those of the others" in capsys.readouterr().out
    assert len(done["correct"]) == 20 and any("class_2" in remark for remark in done["remarks"])


def test_a_collapsed_network_gives_the_true_number(images, checkpoint, tmp_path):
    """Constant features: one class is said of every image, whichever; a sixth of them are right."""
    content = torch.load(checkpoint, weights_only=True)
    for name, tensor in content["state_dict"].items():
        if "backbone." in name and tensor.is_floating_point() and "running_var" not in name:
            tensor.zero_()
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / checkpoint.name)
    shutil.copy(checkpoint.with_name("args.json"), tmp_path / "run")
    done = finetune(finetune_settings(images, tmp_path / "run", max_epochs=1))
    assert done["top1"] == pytest.approx(100 / 6, abs=1e-3)
    assert all(math.isfinite(value) for epoch in done["epochs"] for value in epoch.values())


def test_a_rate_that_blows_the_weights_up_ends_with_a_sentence(images, checkpoint):
    settings = finetune_settings(images, checkpoint, optimizer__lr=1e25, max_epochs=3)
    with pytest.raises(
        UserError, match="not finite.*lower optimizer.lr or optimizer.classifier_lr"
    ):
        finetune(settings)


def test_random_weights_are_those_of_the_seed_with_and_without_a_checkpoint(
    images, checkpoint, capsys
):
    begins = []
    for changes in ({"seed": 0}, {"seed": 0, "path": checkpoint}, {"seed": 1}):
        path, first = changes.pop("path", None), []
        with at_every_step(
            lambda m, first=first: first or first.append(m.backbone.conv1.weight.detach().clone())
        ):
            done = finetune(
                finetune_settings(images, path, weights="random", max_epochs=1, **changes)
            )
        assert done["pretrained"] is None and done["network"] is None
        begins.append(first[0])
    assert torch.equal(begins[0], begins[1]) and not torch.equal(begins[0], begins[2])
    assert "random resnet18, from labels alone" in capsys.readouterr().out


class Plain(nn.Module):
    """A backbone without batch norm, whose statistics each process has of its own on CPUs."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, images):
        return self.layer(images.flatten(1)).tanh()


def trained(rank, world=2):
    """Three steps on this rank's part of the images; the weights, flat."""
    torch.manual_seed(0)
    model = FineTuning(Plain(), 6, lr=0.02, classifier_lr=0.5, milestones=[1]).double()
    (optimizer,), _ = model.configure_optimizers()
    images = torch.randn(3, 8, 3, 2, 2, dtype=torch.float64)
    targets = torch.randint(6, (3, 8))
    net = DistributedDataParallel(model) if world > 1 else model
    for step in range(3):
        own = slice(rank, None, world)
        optimizer.zero_grad()
        F.cross_entropy(net(images[step, own])["logits"], targets[step, own]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_ranks_with_different_images_train_what_one_process_does(tmp_path):
    alone = trained(0, 1)
    for weights in run_on_ranks(trained, 2, tmp_path):
        assert torch.allclose(weights, alone, rtol=1e-12, atol=1e-14)


def test_hits_are_counted_by_rank():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert hits(logits, torch.tensor([1, 2]), (1, 2)).tolist() == [1.0, 2.0]
