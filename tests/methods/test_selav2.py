"""SeLa v2 as a method of the host: memory, labels of the epoch, what is trained on what, what is said."""

import pytest
import torch

from carp_plugin.errors import UserError
from carp_plugin.losses.selav2 import selav2_loss_func, sinkhorn_plan, soft_labels
from carp_plugin.methods import selav2
from carp_plugin.settings.methods import SelaKwargs
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.whole import bare


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def model_of(images, begun=True, **changes):
    return bare(small_settings(images, "selav2", **changes), begun)


def batch_of(model):
    return next(iter(model.trainer.train_dataloader))


def test_defaults_are_those_of_the_paper_and_of_swav():
    kwargs = SelaKwargs()
    assert kwargs.num_prototypes == (3000, 3000, 3000) and kwargs.temperature == 0.1
    assert (kwargs.epsilon, kwargs.labels, kwargs.freeze_prototypes_epochs) == (0.05, "hard", 1)


@pytest.mark.parametrize("small_crops", [0, 2])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_every_view_is_trained_on_the_label_of_its_image(labels, small_crops, images, monkeypatch):
    views = [augmentation(16, 2)] + ([augmentation(8, small_crops)] if small_crops else [])
    model = model_of(images, method_kwargs__labels=labels, augmentations=views)
    seen = {}

    def spy(cosines, y, temperature):
        seen.update(cosines=cosines, y=y)
        return selav2_loss_func(cosines, y, temperature)

    monkeypatch.setattr(selav2, "selav2_loss_func", spy)
    indexes, views, targets = batch_of(model)
    loss = model.training_step([indexes, views, targets], 0)
    assert [tuple(c.shape) for c in seen["cosines"]] == [
        (2 + small_crops, 8, 4),
        (2 + small_crops, 8, 6),
    ]
    for h, y in enumerate(seen["y"]):
        rows, C = model.image_memory[h % 2], model.prototypes[h].weight.detach()
        plan = sinkhorn_plan(rows, C, model.epsilon)
        whole = soft_labels(rows, C, model.epsilon, plan.log_v_K)
        if labels == "soft":
            assert torch.allclose(y, whole[indexes], atol=1e-6)
        else:
            assert torch.equal(y, whole.argmax(dim=1)[indexes])
    expected = selav2_loss_func(seen["cosines"], seen["y"], 0.1)
    total = expected + model.logged["train_class_loss"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_the_memory_begins_with_every_image_and_then_has_what_the_steps_saw(images):
    model = model_of(images, optimizer__batch_size=5)
    assert torch.allclose(model.image_memory.norm(dim=-1), torch.ones(2, 24), atol=1e-5)
    assert len(model.image_memory[0].unique(dim=0)) == 24
    begun, touched = model.image_memory.clone(), torch.zeros(24, dtype=torch.bool)
    for step, batch in enumerate(model.trainer.train_dataloader):
        model.training_step(batch, step)
        _, large = model._seen
        model.on_train_batch_end(None, batch, step)
        assert torch.equal(model.image_memory[:, batch[0]], large)
        touched[batch[0]] = True
    assert touched.sum() == 20  # the last, smaller batch is dropped: its images keep what they had
    assert torch.equal(model.image_memory[:, ~touched], begun[:, ~touched])
    assert not torch.equal(model.image_memory[0], model.image_memory[1])


def test_labels_stay_for_the_epoch_and_are_found_anew_in_the_next(images):
    model = model_of(images)
    kept = model.image_labels.clone()
    model.image_memory.copy_(torch.nn.functional.normalize(torch.randn(2, 24, 16), dim=-1))
    model.on_train_epoch_start()  # as a run that was resumed within the epoch does
    assert torch.equal(model.image_labels, kept)
    model.trainer.current_epoch = 1
    model.on_train_epoch_start()
    assert not torch.equal(model.image_labels, kept)
    assert model.image_labels.max() < 6 and int(model.labels_epoch) == 1
    assert {"train_plan_error", "train_labels_used", "train_largest_label"} <= set(model.logged)
    assert model.logged["train_plan_error"] <= 0.01


@pytest.mark.parametrize("unit", [True, False])
def test_prototypes_have_unit_rows_after_every_step_and_rest_at_first(unit, images):
    kwargs = {"normalize_prototypes": unit, "freeze_prototypes_epochs": 1}
    model = model_of(images, **{f"method_kwargs__{k}": value for k, value in kwargs.items()})
    batch = batch_of(model)
    for epoch in (0, 1):
        model.trainer.current_epoch = epoch
        before = [head.weight.detach().clone() for head in model.prototypes]
        model.zero_grad()
        model.training_step(batch, 0).backward()
        model.on_after_backward()
        torch.optim.SGD(model.parameters(), lr=10.0).step()
        model.on_train_batch_end(None, batch, 0)
        for head, was in zip(model.prototypes, before):
            assert torch.allclose(head.weight, was, atol=1e-6) == (epoch == 0)
            ones = torch.ones(len(was))
            assert torch.allclose(head.weight.norm(dim=1), ones, atol=1e-5) == (unit or epoch == 0)


def test_everything_that_learns_is_given_to_the_optimizer(images):
    model = model_of(images)
    given = {id(p) for group in model.learnable_params for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_constant_embeddings_are_dealt_out_in_turn_and_said(images, capsys):
    model = model_of(images, begun=False)
    with torch.no_grad():
        model.projector[3].weight.zero_()
    model.on_train_start()
    for epoch in (0, 1):
        model.trainer.current_epoch = epoch
        model.on_train_epoch_start()
    assert torch.bincount(model.image_labels[0]).tolist() == [6] * 4
    assert torch.bincount(model.image_labels[1]).tolist() == [4] * 6
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the embeddings are the same for every image") == 1


def test_labels_that_are_not_equally_many_are_said(images, capsys):
    """With a large epsilon the plan is nearly uniform, and its largest entries say little."""
    model = model_of(images)
    capsys.readouterr()
    model._tell({"error": [0.0], "used": [0.1], "largest": [0.6]})
    said = " ".join(capsys.readouterr().out.split())
    assert "one label has 60% of the images" in said and "method_kwargs.epsilon=0.005" in said
    model._tell({"error": [0.5], "used": [0.1], "largest": [0.2]})
    said = " ".join(capsys.readouterr().out.split())
    assert "off by 50%; method_kwargs.sinkhorn_iterations=1000 takes it further" in said


def test_embeddings_that_are_not_finite_have_no_labels(images):
    model = model_of(images)
    model.image_memory[1, 3, 2] = float("nan")
    model.trainer.current_epoch = 1
    with pytest.raises(UserError, match="selav2 cannot group .* of 1 of 48 are not finite; begin"):
        model.on_train_epoch_start()


def test_dali_and_slips_are_refused_in_a_sentence(images):
    with pytest.raises(UserError, match="selav2 goes over all .*; set data.format=image_folder"):
        small_settings(images, "selav2", data__format="dali")
    with pytest.raises(UserError, match="epsilom is not a key of selav2; did you mean 'epsilon'"):
        small_settings(images, "selav2", method_kwargs__epsilom=0.05)
    with pytest.raises(UserError, match="method_kwargs.labels.*choose from hard, soft"):
        small_settings(images, "selav2", method_kwargs__labels="fuzzy")
