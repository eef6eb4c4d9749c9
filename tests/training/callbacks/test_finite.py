"""What is not finite never reaches the weights: the sentence, what is saved, and that every rank leaves."""

import math
import os
import time
from pathlib import Path

import pytest
import torch

from carp_plugin import register
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.host import METHODS
from carp_plugin.methods import carp as carp_module
from carp_plugin.training.callbacks.finite import FiniteLoss
from tests.distributed import run_on_ranks
from tests.helpers import image_folder, small_settings
from tests.rank_runs import under_torchrun

NAN = float("nan")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def spoil(monkeypatch, method="carp", at=4, **how):
    """Makes the training step `at` go wrong, and notes the state before the last step, under its number.

    `how` is one of: image (a pixel), z (the embeddings), term (of the loss), classifier (its loss).
    """
    register()
    cls, before = METHODS[method], {}
    training_step, objective = cls.training_step, carp_module.carp_objective_func
    forward = cls.forward

    def bad(self):
        return self.training and self.trainer.global_step == at

    def step(self, batch, index):
        before.clear()  # the last one only: each is a whole network
        before[self.trainer.global_step] = {
            key: value.clone() for key, value in self.state_dict().items()
        }
        if "image" in how and bad(self):
            batch[1][0][0, 0, 0, 0] = how["image"]
        if "classifier" in how and bad(self):
            batch[2].fill_(0)
            self.classifier.forward = lambda feats: feats[:, :6] * NAN
        step.running = self
        return training_step(self, batch, index)

    def spoilt_forward(self, X):
        out = forward(self, X)
        if "z" in how and bad(self):
            out["z"] = out["z"] + how["z"]
        return out

    def spoilt_objective(*args, **kwargs):
        loss, terms = objective(*args, **kwargs)
        if "term" in how and bad(step.running):
            nan = terms._replace(**{how["term"]: torch.tensor(NAN)})
            return loss * NAN, nan
        return loss, terms

    monkeypatch.setattr(cls, "training_step", step)
    monkeypatch.setattr(cls, "forward", spoilt_forward)
    monkeypatch.setattr(carp_module, "carp_objective_func", spoilt_objective)
    return before


def settings(images, **changes):
    return small_settings(images, **{"evaluation": {"enabled": False}, **changes})


@pytest.mark.parametrize(
    "how, says",
    [
        (
            {"image": NAN},
            "the consistency, the entropy gap and the online classifier's loss are not",
        ),
        ({"image": math.inf}, "nor is an image of the batch; look at the images"),
        ({"z": NAN}, "the consistency and the entropy gap are not finite .*; 16 of 16 embeddings"),
        (
            {"term": "consistency"},
            r"learning rate [\d.]+: the consistency is not finite \(largest fin",
        ),
        (
            {"term": "entropy_gap"},
            r"the entropy gap is not finite \(largest finite logit [\d.]+; 0 of 16",
        ),
        (
            {"classifier": True},
            "the online classifier's loss is not finite .*; begin anew with a lower optimizer.lr",
        ),
    ],
)
def test_training_stops_before_the_step_and_saves_what_was_good(how, says, images, monkeypatch):
    before = spoil(monkeypatch, **how)
    with pytest.raises(UserError, match=f"stopped at step 4, .*{says}") as error:
        pretrain(settings(images))
    path = Path(str(error.value).rsplit("saved in ", 1)[1].rstrip("."))
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 4 and max(before) == 4
    assert saved["state_dict"].keys() == before[4].keys()
    for key, value in saved["state_dict"].items():  # the teacher and batch norm's statistics too
        assert torch.equal(value, before[4][key]), key
    assert "\n" not in str(error.value)


def test_what_was_saved_goes_on(images, monkeypatch):
    with monkeypatch.context() as patched:
        spoil(patched, z=NAN)
        with pytest.raises(UserError) as error:
            pretrain(settings(images))
    path = str(error.value).rsplit("saved in ", 1)[1].rstrip(".")
    assert pretrain(settings(images, resume_from_checkpoint=path))["steps"] == 6


def test_a_huge_learning_rate_leaves_finite_checkpoints_only(images):
    with pytest.raises(
        UserError, match="not finite.*; begin anew with a lower optimizer.lr"
    ) as error:
        pretrain(settings(images, optimizer__lr=1e30))
    said = str(error.value)
    left = list(Path("trained_models").rglob("*.ckpt"))
    for path in left:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
    saved = "saved in" in said
    assert saved or "no checkpoint was written, for" in said
    assert any(str(path) in said for path in left) or "no checkpoint had been written" in said


def test_a_weight_that_is_not_finite_is_not_saved(images, monkeypatch):
    before = spoil(monkeypatch)
    guard = FiniteLoss.on_before_optimizer_step

    def late(self, trainer, module, optimizer):
        if trainer.global_step == 4:
            with torch.no_grad():
                module.prototypes.weight[0, 0] = NAN
                module.prototypes.weight.grad[0, 0] = NAN
        guard(self, trainer, module, optimizer)

    monkeypatch.setattr(FiniteLoss, "on_before_optimizer_step", late)
    says = "gradient of prototypes.weight is not finite, though the loss is.*"
    says += "no checkpoint was written, for prototypes.weight is not finite already; the last one is .*ep=0.ckpt"
    with pytest.raises(UserError, match=says):
        pretrain(settings(images))
    assert max(before) == 4
    assert len(list(Path("trained_models").rglob("*.ckpt"))) == 1


@pytest.mark.parametrize("checkpoint", [True, False])
def test_another_method_and_a_run_without_checkpoints(checkpoint, images, monkeypatch):
    spoil(monkeypatch, "simclr", image=NAN)
    says = "stopped at step 4, .*: the loss is not finite, nor is an image.*"
    says += "saved in" if checkpoint else "nothing was saved .checkpoint.enabled=False"
    with pytest.raises(UserError, match=says):
        pretrain(settings(images, method="simclr", checkpoint__enabled=checkpoint))


def test_within_an_accumulation_the_statistics_are_those_before_its_first_batch(
    images, monkeypatch
):
    """Batches 0 and 1 make a step; the second batch of the second step is spoilt."""
    register()
    cls, seen, state = METHODS["carp"], [], {}
    training_step = cls.training_step

    def step(self, batch, index):
        seen.append(index)
        if len(seen) % 2:
            state.update({key: value.clone() for key, value in self.state_dict().items()})
        if len(seen) == 4:
            batch[1][0][0, 0, 0, 0] = NAN
        return training_step(self, batch, index)

    monkeypatch.setattr(cls, "training_step", step)
    with pytest.raises(UserError, match="stopped at step 1") as error:
        pretrain(settings(images, accumulate_grad_batches=2, optimizer__batch_size=4))
    path = str(error.value).rsplit("saved in ", 1)[1].rstrip(".")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in saved.items())


class Scaled:
    """A trainer with a gradient scaler, as 16-mixed on CUDA has."""

    world_size, global_step, precision, optimizers = 1, 7, "16-mixed", []

    class precision_plugin:
        scaler = object()

    class strategy:
        reduce_boolean_decision = staticmethod(lambda decision, all: decision)
        all_gather = staticmethod(lambda tensor: tensor)
        barrier = staticmethod(lambda: None)


class Unscaled(Scaled):
    """A trainer in full precision."""

    precision = "32-true"

    class precision_plugin:
        scaler = None


@pytest.mark.parametrize("loss, stops", [(1.0, False), (NAN, True), (math.inf, True)])
def test_with_a_gradient_scaler_only_the_loss_counts(loss, stops):
    module = torch.nn.Linear(2, 1)
    module.device = torch.device("cpu")
    module.weight.grad = torch.full((1, 2), math.inf)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    guard = FiniteLoss()
    guard.on_before_backward(Scaled, module, torch.tensor(loss))
    if stops:
        with pytest.raises(
            UserError, match="step 7, learning rate 0.1: the loss.*precision=32-true"
        ):
            guard.on_before_optimizer_step(Scaled, module, optimizer)
    else:
        guard.on_before_optimizer_step(Scaled, module, optimizer)


@pytest.mark.parametrize("value", [3e38, 1e20])
def test_gradients_too_large_for_their_norm_are_finite_still(value):
    module = torch.nn.Linear(2, 1)
    module.weight.grad = torch.full((1, 2), value)
    guard = FiniteLoss()
    guard.on_before_backward(Scaled, module, torch.tensor(1.0))
    guard.on_before_optimizer_step(Scaled, module, torch.optim.SGD(module.parameters(), lr=0.1))


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(3))
def test_one_entry_of_one_gradient_among_many_is_enough(which, bad):
    module = torch.nn.ParameterList([torch.zeros(3), torch.zeros(4, 5), torch.zeros(())])
    module.device = torch.device("cpu")
    for parameter in module:
        parameter.grad = torch.randn(parameter.shape)
    module[which].grad.view(-1)[-1] = bad
    guard = FiniteLoss()
    guard.on_before_backward(Unscaled, module, torch.tensor(1.0))
    says = f"the gradient of {which} is not finite, though the loss is"
    with pytest.raises(UserError, match=says):
        guard.on_before_optimizer_step(
            Unscaled, module, torch.optim.SGD(module.parameters(), lr=0.1)
        )


def test_an_accelerator_is_waited_for_once_a_step(monkeypatch):
    """Whatever the number of gradients: one tensor is turned into a number of Python's."""
    module = torch.nn.ParameterList([torch.zeros(3) for _ in range(50)])
    for parameter in module:
        parameter.grad = torch.ones(3)
    looks = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: looks.append(1) or 1.0)
    for look in ("item", "__bool__", "cpu", "tolist", "__int__"):
        monkeypatch.setattr(torch.Tensor, look, lambda *_, name=look: looks.append(name))
    guard = FiniteLoss()
    guard.on_before_backward(Unscaled, module, torch.tensor(1.0))
    guard.on_before_optimizer_step(Unscaled, module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert looks == [1]


def one_rank_breaks(rank, root, folder, where):
    """What this rank says, and when after the bad step."""
    under_torchrun(rank, 2)
    os.chdir(folder)
    register()
    cls, started = METHODS["carp"], []
    training_step = cls.training_step

    def step(self, batch, index):
        if self.trainer.global_step == 2:
            started.append(time.monotonic())
            if rank == 1 and where == "image":
                batch[1][0][0, 0, 0, 0] = NAN
            if rank == 1 and where == "classifier":
                self.classifier.forward = lambda feats: self.classifier_of(feats) * NAN
                self.classifier_of = lambda feats: torch.nn.functional.linear(
                    feats, self.classifier.weight, self.classifier.bias
                )
        return training_step(self, batch, index)

    cls.training_step = step
    try:
        pretrain(
            small_settings(
                root,
                devices=2,
                strategy="ddp",
                evaluation={"enabled": False},
                optimizer__batch_size=4,
            )
        )
    except UserError as error:
        return str(error), time.monotonic() - started[0]
    return "nothing", 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, says", [("image", "the consistency"), ("classifier", "the online classifier")]
)
def test_both_ranks_leave_when_one_breaks(where, says, images, tmp_path):
    """Only rank 1 sees it; both end within seconds, with one sentence."""
    answers = run_on_ranks(one_rank_breaks, 2, tmp_path, images, tmp_path, where)
    for said, seconds in answers:
        assert "stopped at step 2" in said and says in said and "saved in" in said
        assert seconds < 30
    assert answers[0][0] == answers[1][0]
