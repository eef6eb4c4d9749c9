"""PIRL as a method of the host: its step, its memory, its draw of negatives."""

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.losses.pirl import log_normaliser, pirl_loss_func
from carp_plugin.methods.patches import features_of_patches
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint
from tests.methods.steps import built, first_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def begun(images, **changes):
    """(a method at the start of training, with batch norm at rest; a batch; what it logs)."""
    settings, model, logged = built(images, "pirl", **changes)
    model.eval()
    model.on_train_start()
    return model, first_batch(settings), logged


def test_the_memory_begins_as_unit_rows_of_the_seed(images):
    memory = begun(images)[0].memory_bank
    assert memory.shape == (24, 16) and torch.allclose(memory.norm(dim=1), torch.ones(24))
    assert torch.equal(memory, begun(images)[0].memory_bank)
    assert not torch.equal(memory, begun(images, seed=1)[0].memory_bank)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("loss", ["nce", "cross_entropy"])
@pytest.mark.parametrize("shared", [True, False])
def test_step_is_the_loss_against_the_memory(head, loss, shared, images):
    changes = {"head": head, "loss": loss, "shared_negatives": shared, "proj_hidden_dim": 8}
    changes = {f"method_kwargs__{key}": value for key, value in changes.items()}
    model, batch, logged = begun(images, **changes)
    indexes, (view, patches), _ = batch
    image = model(view)["z"]
    jigsaw = model.patch_head(features_of_patches(model.backbone, patches, channels_last=True))
    memory, negatives = model.memory_bank[indexes], model.negatives(8, 0)
    assert negatives.shape == ((16, 16) if shared else (8, 16, 16))
    log_z = log_normaliser(image, memory, negatives, 0.07, 24) if loss == "nce" else None
    expected = pirl_loss_func(
        image, F.normalize(jigsaw, dim=-1), memory, negatives, 0.07, log_z=log_z, images=24
    )
    model.training_step(batch, 0).backward()
    assert logged["train_pirl_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(p.grad is not None for p in model.parameters())
    given = {id(p) for group in model.learnable_params for p in group["params"]}
    assert given == {id(p) for p in model.parameters()}


def test_z_is_that_of_the_first_batch(images):
    model, batch, _ = begun(images)
    model.training_step(batch, 0)
    first = model.log_z.clone()
    assert first > 0
    model.trainer.global_step = 1
    model.memory_bank.neg_()
    model.training_step(batch, 1)
    assert torch.equal(model.log_z, first)


def test_only_the_rows_of_images_that_were_seen_move_and_only_after_the_step(images):
    model, batch, _ = begun(images)
    before, indexes = model.memory_bank.clone(), batch[0]
    image = model(batch[1][0])["z"]
    model.training_step(batch, 0)
    assert torch.equal(model.memory_bank, before)
    model.on_train_batch_end(None, batch, 0)
    rest = torch.ones(24, dtype=torch.bool)
    rest[indexes] = False
    assert torch.equal(model.memory_bank[rest], before[rest])
    moved = F.normalize((before[indexes] + image) / 2, dim=-1)
    assert torch.allclose(model.memory_bank[indexes], moved, atol=1e-6)


def test_negatives_are_drawn_with_replacement_from_all_and_anew_for_each_batch(images):
    model, _, _ = begun(images, method_kwargs__num_negatives=2000)
    rows = model.negatives(8, 0)
    drawn = (rows @ model.memory_bank.T).argmax(dim=1)
    assert len(drawn.unique()) == 24 and torch.equal(rows, model.negatives(8, 0))
    others = [model.negatives(8, 1)]
    model.trainer.current_epoch = 1
    others.append(model.negatives(8, 0))
    assert all(not torch.equal(rows, other) for other in others)


def test_a_checkpoint_is_evaluated_without_its_memory(images, tmp_path):
    path = write_checkpoint(tmp_path / "run", images, "pirl")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["memory_bank"] = torch.zeros(24, 16)
    torch.save(content, path)
    found = load_pretrained(path)
    assert found.sentence.endswith("left out: memory_bank")
    assert found.network("student", "projector")(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
