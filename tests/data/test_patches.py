"""Patches come from their cells, in random order, and are those of seed, epoch and image; RandAugment is timm's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from carp_plugin.data.patches import Jigsaw, with_rand_augment
from carp_plugin.errors import UserError
from carp_plugin.settings.methods import PatchKwargs
from carp_plugin.settings.parts import RandAugment
from tests.data.built import training_loader
from tests.helpers import augmentation, image_folder, small_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def places(patches):
    """Where the first pixel of each patch stood, for an image whose red is its column and green its row."""
    return [(int(p[1, 0, 0]), int(p[0, 0, 0])) for p in (255 * patches).round()]


@pytest.fixture
def jigsaw():
    """Of an image that is not resized: each pixel says where it is."""
    sizes = PatchKwargs(jigsaw_size=30, patch_size=6)
    made = Jigsaw(sizes, transforms.ToTensor())
    made.crop = lambda image: image
    return made


@pytest.fixture
def image():
    rows, columns = np.mgrid[0:30, 0:30]
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1).astype(np.uint8))


def test_there_is_one_patch_in_each_cell_and_all_places_in_it_occur(jigsaw, image):
    torch.manual_seed(0)
    seen, orders = set(), set()
    for _ in range(200):
        patches = jigsaw(image)
        assert patches.shape == (9, 3, 6, 6)
        at = places(patches)
        cells = [(row // 10, column // 10) for row, column in at]
        assert len(set(cells)) == 9
        assert all(row % 10 <= 4 and column % 10 <= 4 for row, column in at)  # 10 - 6, inclusive
        seen |= {(row % 10, column % 10) for row, column in at}
        orders.add(tuple(cells))
        whole = (255 * patches).round().int()
        assert all(p[0, 0, -1] - p[0, 0, 0] == 5 and p[1, -1, 0] - p[1, 0, 0] == 5 for p in whole)
    assert len(seen) == 25 and len(orders) > 190


def test_they_are_a_function_of_seed_epoch_and_image(images):
    settings = small_settings(images, "infomin")
    one, other, third = (training_loader(settings) for _ in range(3))
    third.sampler.epoch = 1
    batches = [next(iter(loader)) for loader in (one, other, third)]
    assert [tuple(view.shape) for view in batches[0][1]] == [(8, 3, 16, 16)] * 2 + [(8, 9, 3, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(batches[0][1], batches[1][1]))
    assert not torch.equal(batches[0][1][2], batches[2][1][2])


@pytest.mark.parametrize("method, distorts", [("infomin", False), ("pirl", True)])
def test_pirl_distorts_each_patch_and_infomin_none(method, distorts, images):
    """An image of one colour has patches of one colour, unless they are distorted."""
    view = augmentation(16, 1 if method == "pirl" else 2)
    view["color_jitter"]["prob"] = 1.0
    settings = small_settings(images, method, augmentations=[view])
    transform = training_loader(settings).dataset.dataset.dataset.transform
    patches = transform(Image.new("RGB", (20, 20), (200, 120, 40)))[-1]
    assert (patches.flatten(1).std(0).max() > 1e-3) == distorts


def test_rand_augment_comes_last_but_for_grey_scale():
    grey, flip = transforms.RandomGrayscale(), transforms.RandomHorizontalFlip()
    end = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    pipeline = transforms.Compose([grey, flip, *end])
    made = with_rand_augment(pipeline, RandAugment(num_ops=2, magnitude=10, magnitude_std=0.5))
    first, augment, second, *rest = made.transforms
    assert first is flip and second is grey and rest == end
    assert augment.num_layers == 2 and len(augment.ops) == 15
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in augment.ops} == {(0.5, 10, 0.5)}
    assert with_rand_augment(pipeline, RandAugment()) is pipeline


def test_rand_augment_is_a_function_of_seed_epoch_and_image(images):
    view = {**augmentation(), "rand_augment": {"num_ops": 2}}
    settings = small_settings(images, augmentations=[view])
    batches = [next(iter(training_loader(settings)))[1] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*batches))
    plain = next(iter(training_loader(small_settings(images))))[1]
    assert not torch.equal(plain[0], batches[0][0])


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"method_kwargs__patch_size": 6}, "method_kwargs.jigsaw_size=18 would do"),
        (
            {"method_kwargs__jigsaw_size": 16},
            "multiple of 3.*method_kwargs.jigsaw_size=18 would do",
        ),
        ({"data__format": "dali"}, "infomin looks at patches, .* data.format=image_folder"),
        ({"augmentations": [augmentation(16, 1)]}, "infomin needs 2 large views"),
    ],
)
def test_what_cannot_be_is_said(changes, says, images):
    with pytest.raises(UserError, match=says):
        small_settings(images, "infomin", **changes)


def test_rand_augment_with_dali_is_refused(images):
    views = [{**augmentation(), "rand_augment": {"num_ops": 2}}]
    with pytest.raises(UserError, match=r"augmentations.0.rand_augment.num_ops=0, or data.format"):
        small_settings(images, augmentations=views, data__format="dali")
