"""PIRL's loss and its memory: instance discrimination without patches, NCE as it is written, rows of unit length."""

import math

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.losses.info_nce import info_nce_func
from carp_plugin.losses.pirl import log_normaliser, moved_memory, nce_func, pirl_loss_func
from tests.losses.test_info_nce import hosts, unit

T, N, D, K, IMAGES = 0.2, 4, 8, 9, 30


@pytest.fixture
def given():
    """Embeddings of images and of patches, their rows of the memory, negatives."""
    return unit(N, D), unit(N, D, seed=1), unit(N, D, seed=2), unit(K, D, seed=3)


def test_without_patches_it_is_instance_discrimination(given):
    """Shared negatives and cross-entropy: the host's MoCo with the memory in the queue's place."""
    image, patches, memory, negatives = given
    loss = pirl_loss_func(image, patches, memory, negatives, T, 0.0)
    assert loss.item() == pytest.approx(hosts(image, memory, negatives, T).item(), rel=1e-12)
    whole = pirl_loss_func(image, patches, memory, negatives, T, 1.0)
    assert whole.item() == pytest.approx(info_nce_func(patches, memory, negatives, T).item())
    half = pirl_loss_func(image, patches, memory, negatives, T)
    assert half.item() == pytest.approx((loss + whole).item() / 2, rel=1e-12)


def test_nce_is_the_formula_of_the_paper(given):
    """-log h_i / (h_i + K / n) - sum log (K / n) / (h_k + K / n), h = exp(v m / T) / Z."""
    image, _, memory, negatives = given
    log_z = torch.tensor(7.0, dtype=torch.float64)
    h = lambda v, m: (v @ m / T).exp() / log_z.exp()  # noqa: E731
    noise = K / IMAGES
    expected = 0.0
    for v, own in zip(image, memory):
        expected -= (h(v, own) / (h(v, own) + noise)).log() / N
        expected -= sum((noise / (h(v, m) + noise)).log() for m in negatives) / N
    assert nce_func(image, memory, negatives, T, log_z, IMAGES).item() == pytest.approx(
        expected.item(), rel=1e-10
    )


def test_z_is_n_times_the_mean_over_the_batch(given):
    image, _, memory, negatives = given
    scores = torch.cat([(image * memory).sum(1, keepdim=True), image @ negatives.T], dim=1) / T
    expected = math.log(IMAGES * scores.exp().mean().item())
    found = log_normaliser(image, memory, negatives, T, IMAGES)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_large_similarities_stay_finite(given):
    image, _, _, negatives = given
    cold = 1e-3
    log_z = log_normaliser(image, image, negatives, cold, IMAGES)
    assert log_z.isfinite() and nce_func(image, image, negatives, cold, log_z, IMAGES).isfinite()


@pytest.mark.parametrize("nce", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_gradient_in_float64(nce, own, given):
    image, patches, memory, negatives = given
    if own:
        negatives = unit(N, K, D, seed=5)
    log_z = torch.tensor(3.0, dtype=torch.float64) if nce else None
    loss = lambda f, g: pirl_loss_func(  # noqa: E731
        f, g, memory, negatives, T, 0.3, log_z=log_z, images=IMAGES
    )
    assert torch.autograd.gradcheck(loss, (image.requires_grad_(), patches.requires_grad_()))


def test_rows_of_the_memory_move_and_stay_of_unit_length(given):
    image, _, memory, _ = given
    for momentum in (0.0, 0.3, 0.5, 1.0):
        moved = moved_memory(memory, image, momentum)
        assert torch.allclose(moved.norm(dim=1), torch.ones(N, dtype=torch.float64))
        expected = F.normalize(momentum * memory + (1 - momentum) * image, dim=1)
        assert torch.allclose(moved, expected)
    assert torch.allclose(moved_memory(memory, image, 0.0), image)
    assert torch.allclose(moved_memory(memory, image, 1.0), memory)


def test_what_does_not_fit_is_said(given):
    image, patches, memory, negatives = given
    with pytest.raises(ValueError, match="patch_weight: expected a number from 0 to 1, received 2"):
        pirl_loss_func(image, patches, memory, negatives, T, 2)
    with pytest.raises(ValueError, match="momentum: .* received -0.1"):
        moved_memory(memory, image, -0.1)
    with pytest.raises(ValueError, match=r"embedding: expected the shape of memory, \(4, 8\)"):
        moved_memory(memory, image[:2], 0.5)
    with pytest.raises(ValueError, match="images: expected at least 1, received 0"):
        nce_func(image, memory, negatives, T, torch.zeros(()), 0)
