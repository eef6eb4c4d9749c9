"""CARP as a method of the host: what reaches the loss, what learns, what is logged."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from omegaconf import OmegaConf

import carp_plugin
from carp_plugin.errors import UserError
from carp_plugin.host import METHODS
from carp_plugin.host.cfg import pretrain_cfg
from carp_plugin.losses.carp import carp_loss_func
from carp_plugin.methods import carp as carp_module
from carp_plugin.methods.carp import CARP, Prototypes
from carp_plugin.partition import random_partition
from carp_plugin.settings.parts import CarpKwargs
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.data.built import training_loader
from tests.helpers import augmentation, image_folder, small_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


class FakeTrainer:
    """What the method asks a trainer for."""

    global_step = 0
    estimated_stepping_batches = 10
    sanity_checking = False


def built(images, monkeypatch, **changes):
    """A CARP outside a trainer, and what it logs."""
    settings = small_settings(images, **changes)
    seed_everything(0, verbose=False)
    model = build_model(settings, machine_of(settings))
    logged = {}
    monkeypatch.setattr(CARP, "trainer", FakeTrainer())
    monkeypatch.setattr(CARP, "log_dict", lambda self, metrics, **_: logged.update(metrics))
    monkeypatch.setattr(CARP, "log", lambda self, name, value, **_: logged.update({name: value}))
    return settings, model, logged


def test_register_twice_is_once():
    before = dict(METHODS)
    carp_plugin.register()
    assert METHODS == before and METHODS["carp"] is CARP


def test_defaults_are_those_of_the_paper(images):
    """Appendix B.1: three layers of 2048 with batch norm and GELU to 256; K = 65,536, B = 512."""
    cfg = pretrain_cfg(small_settings(images).values(), "cpu", [0])
    cfg.method_kwargs = {}
    CARP.add_and_assert_specific_cfg(cfg)
    kwargs = cfg.method_kwargs
    assert dict(kwargs) == CarpKwargs().model_dump()
    assert (kwargs.proj_hidden_dim, kwargs.proj_output_dim) == (2048, 256)
    assert kwargs.num_prototypes // kwargs.partition_size == 128


def test_projector_is_three_linear_layers_with_batch_norm_and_gelu(images, monkeypatch):
    _, model, _ = built(images, monkeypatch)
    names = [type(layer).__name__ for layer in model.projector]
    assert names == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]


def test_the_head_begins_as_dinos(images, monkeypatch):
    """Truncated normal of 0.02 and biases of 0; the teacher begins as the student."""
    _, model, _ = built(images, monkeypatch, method_kwargs__proj_hidden_dim=256)
    for layer, copy in zip(model.projector[::3], model.momentum_projector[::3]):
        assert torch.equal(layer.weight, copy.weight) and torch.equal(layer.bias, copy.bias)
        assert not layer.bias.any() and layer.weight.abs().max() < 2
        off = 5 * 0.02 / math.sqrt(2 * layer.weight.numel())  # standard errors of a deviation
        assert abs(layer.weight.std().item() - 0.02) < off


def test_prototypes_are_unit_rows_or_a_plain_layer():
    torch.manual_seed(0)
    prototypes = Prototypes(12, 5)
    assert torch.allclose(prototypes().norm(dim=1), torch.ones(12))
    prototypes.normalize = False
    assert prototypes() is prototypes.weight


def test_teacher_starts_as_the_student_and_gets_no_gradient(images, monkeypatch):
    settings, model, _ = built(images, monkeypatch)
    for student, teacher in model.momentum_pairs:
        for s, t in zip(student.parameters(), teacher.parameters()):
            assert torch.equal(s, t) and not t.requires_grad
    assert len(model.momentum_pairs) == 3
    model.training_step(next(iter(training_loader(settings))), 0).backward()
    for student, teacher in model.momentum_pairs:
        assert all(p.grad is not None for p in student.parameters())
        assert all(p.grad is None for p in teacher.parameters())


def test_everything_that_learns_is_given_to_the_optimizer(images, monkeypatch):
    _, model, _ = built(images, monkeypatch)
    given = {id(p) for group in model.learnable_params for p in group["params"]}
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert given == wanted


@pytest.mark.parametrize("small_crops", [0, 3])
@pytest.mark.parametrize("teacher_prototypes", ["momentum", "student"])
def test_step_is_the_loss_of_its_embeddings(small_crops, teacher_prototypes, images, monkeypatch):
    """All views go through the student, the two large ones through the teacher; pairs i != j."""
    views = [augmentation(16, 2)] + ([augmentation(8, small_crops)] if small_crops else [])
    settings, model, logged = built(
        images,
        monkeypatch,
        augmentations=views,
        method_kwargs__teacher_prototypes=teacher_prototypes,
        method_kwargs__consistency_weight=2.0,
        method_kwargs__entropy_weight=0.5,
    )
    seen = {}
    objective = carp_module.carp_objective_func

    def spy(student, teacher, *args, **kwargs):
        seen.update(student=student, teacher=teacher, args=args)
        return objective(student, teacher, *args, **kwargs)

    monkeypatch.setattr(carp_module, "carp_objective_func", spy)
    batch = next(iter(training_loader(settings)))
    loss = model.training_step(batch, 0)
    assert [tuple(z.shape) for z in seen["student"]] == [(8, 16)] * (2 + small_crops)
    assert [tuple(z.shape) for z in seen["teacher"]] == [(8, 16)] * 2
    prototypes, momentum_prototypes, permutation, partition_size = seen["args"]
    assert not momentum_prototypes.requires_grad
    assert torch.equal(permutation, random_partition(settings.seed, 0, 32)) and partition_size == 8
    terms = carp_loss_func(seen["student"], seen["teacher"], *seen["args"], fused=False)
    expected = 2.0 * terms.consistency + 0.5 * terms.entropy_gap
    assert logged["train_carp_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx((expected + logged["train_class_loss"]).item(), rel=1e-5)


def test_multicrop_views_keep_their_order(images, monkeypatch):
    settings, model, _ = built(
        images, monkeypatch, augmentations=[augmentation(16, 2), augmentation(8, 1)]
    )
    model.eval()
    indexes, views, targets = next(iter(training_loader(settings)))
    seen = {}
    monkeypatch.setattr(
        carp_module,
        "carp_objective_func",
        lambda student, *_, **__: seen.update(student=student) or (student[0].sum(), seen["stop"]),
    )
    with pytest.raises(KeyError):
        model.training_step([indexes, views, targets], 0)
    for z, view in zip(seen["student"], views):
        assert torch.allclose(z, model.projector(model.backbone(view)), atol=1e-5)


def test_partition_follows_seed_and_step(images, monkeypatch):
    settings, model, _ = built(images, monkeypatch, seed=7)
    seen = []
    objective = carp_module.carp_objective_func

    def spy(*args, **kwargs):
        seen.append(args[4])
        return objective(*args, **kwargs)

    monkeypatch.setattr(carp_module, "carp_objective_func", spy)
    batch = next(iter(training_loader(settings)))
    for step in (0, 1, 1):
        model.trainer.global_step = step
        model.training_step(batch, 0)
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], random_partition(7, 1, 32))


def test_constant_partition_never_moves(images, monkeypatch):
    settings, model, _ = built(images, monkeypatch, method_kwargs__partition="constant")
    seen = []
    monkeypatch.setattr(
        carp_module,
        "partition",
        lambda kind, *args: seen.append(kind) or torch.arange(32),
    )
    model.training_step(next(iter(training_loader(settings))), 0)
    assert seen == ["constant"]


def test_both_terms_and_the_signs_of_collapse_are_logged(images, monkeypatch):
    settings, model, logged = built(images, monkeypatch)
    model.training_step(next(iter(training_loader(settings))), 0)
    expected = {
        "carp_loss",
        "consistency",
        "entropy_gap",
        "information",
        "prototypes_used",
        "z_std",
    }
    assert {f"train_{name}" for name in expected} <= set(logged)
    assert 0 <= logged["train_entropy_gap"] <= math.log(8)
    assert 0 < logged["train_prototypes_used"] <= 1


def test_constant_output_has_no_information(images, monkeypatch):
    """A loss below log B proves nothing; the information of a constant output is 0 all the same."""
    settings, model, logged = built(images, monkeypatch)
    last = model.projector[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.randn(16) * 3)
    model.training_step(next(iter(training_loader(settings))), 0)
    assert logged["train_information"] == pytest.approx(0, abs=1e-5)
    assert logged["train_z_std"] == pytest.approx(0, abs=1e-5)


def test_without_a_momentum_encoder_the_teacher_is_the_student(images, monkeypatch):
    """Tables 5 and 6: eta = 0."""
    settings, model, logged = built(
        images, monkeypatch, momentum={"base_tau": 0.0, "final_tau": 0.0}
    )
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    model.on_train_start()
    model.trainer.global_step = 1
    if (
        carp_plugin.host.HOST.kind == "pypi"
    ):  # its schedule asks the trainer's loader for its length
        model.trainer.train_dataloader, model.trainer.max_epochs = [0] * 5, 2
        model.trainer.accumulate_grad_batches = 1
    model.on_train_batch_end(None, None, 0)
    for s, t in zip(model.backbone.parameters(), model.momentum_backbone.parameters()):
        assert torch.equal(s, t)
    assert logged["tau"] == 0.0


def test_plain_and_fused_loss_train_alike(images, monkeypatch):
    gradients = []
    for fused in (True, False):
        settings, model, _ = built(images, monkeypatch, method_kwargs__fused=fused)
        model.training_step(next(iter(training_loader(settings))), 0).backward()
        gradients.append(model.prototypes.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("num_prototypes", 30, "must be a multiple of method_kwargs.partition_size=8.*24 or 32"),
        ("num_prototypes", 0, "whole number of at least 1"),
        ("num_prototypes", 3.5, "whole number"),
        ("partition_size", True, "whole number"),
        ("partition_size", 64, "multiple"),
        ("partition", "randm", "did you mean 'random'"),
        ("teacher_prototypes", "both", "choose from momentum, student"),
        ("consistency_weight", -1, "at least 0"),
        ("entropy_weight", "much", "must be a number"),
        ("entropy_weight", float("inf"), "must be a number"),
        ("normalize_prototypes", "yes", "True or False"),
        ("fused", 1, "True or False"),
        ("partitionsize", 8, "did you mean 'partition_size'"),
    ],
)
def test_bad_method_kwargs_are_named(key, value, says):
    cfg = OmegaConf.create(
        {
            "optimizer": {},
            "scheduler": {},
            "backbone": {},
            "method_kwargs": {"num_prototypes": 32, "partition_size": 8, key: value},
        }
    )
    with pytest.raises(UserError, match=says):
        CARP.add_and_assert_specific_cfg(cfg)


@pytest.mark.parametrize("rows", [5, 2048 + 3])  # more than a piece of the backward pass
def test_unit_rows_are_normalised_rows_and_so_is_their_gradient(rows):
    """The gradient is written by hand: against autograd's, in float64."""
    generator = torch.Generator().manual_seed(0)
    rows_KD = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * 3
    weight_KD = torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    ours, theirs = (rows_KD.clone().requires_grad_() for _ in range(2))
    unit = carp_module._UnitRows.apply(ours)
    expected = torch.nn.functional.normalize(theirs, dim=-1)
    assert torch.allclose(unit, expected, rtol=1e-14, atol=0)
    (unit * weight_KD).sum().backward()
    (expected * weight_KD).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-11, atol=1e-14)
    if rows < 10:
        small = rows_KD.clone().requires_grad_()
        assert torch.autograd.gradcheck(carp_module._UnitRows.apply, (small,))


def test_a_row_of_zeros_stays_one():
    zeros = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(carp_module._UnitRows.apply(zeros), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("which", ["momentum", "student"])
def test_the_teacher_is_compared_with_the_prototypes_that_are_chosen(which, images, monkeypatch):
    """Once the momentum copy is another one: with "student" it makes no difference, with "momentum" it does."""
    settings, model, _ = built(images, monkeypatch, method_kwargs__teacher_prototypes=which)
    batch = next(iter(training_loader(settings)))
    seen = []
    objective = carp_module.carp_objective_func

    def spy(student, teacher, prototypes, momentum_prototypes, *args, **kwargs):
        seen.append((prototypes.detach().clone(), momentum_prototypes.clone()))
        return objective(student, teacher, prototypes, momentum_prototypes, *args, **kwargs)

    monkeypatch.setattr(carp_module, "carp_objective_func", spy)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("momentum_prototypes."):
                parameter.neg_()
    model.training_step(batch, 0)
    ((students, teachers),) = seen
    assert torch.equal(teachers, -students if which == "momentum" else students)
