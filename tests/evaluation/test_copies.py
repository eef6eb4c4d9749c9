"""Copies of images: what each transformation does, and that a copy is a function of image and seed."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from carp_plugin.data.images import NamesBadImages
from carp_plugin.data.loaders import labelled_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation import copies as making
from carp_plugin.evaluation.copies import TRANSFORMATIONS, Copies, Copy, planned
from carp_plugin.settings.trained import TrainedData
from tests.helpers import image_folder


def draws(seed=0):
    return np.random.default_rng(seed)


def gradient(width=40, height=20):
    """An image in which every pixel tells its place."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 6, y * 12, x + y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_a_crop_is_a_part_of_its_share_at_a_random_place(share):
    image = gradient()
    parts = [making.crop(image, share, draws(seed)) for seed in range(30)]
    places = set()
    for part in parts:
        assert part.size == (round(40 * share**0.5), round(20 * share**0.5))
        pixels = np.asarray(part)
        left, top = int(pixels[0, 0, 0]) // 6, int(pixels[0, 0, 1]) // 12
        whole = np.asarray(image)[top : top + part.size[1], left : left + part.size[0]]
        assert np.array_equal(pixels, whole)
        places.add((left, top))
    assert len(places) > 5


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_an_overlay_covers_its_share_with_one_colour(share):
    image = gradient()
    covered = np.asarray(making.overlay(image, share, draws(1)))
    changed = (covered != np.asarray(image)).any(axis=2)
    colours = np.unique(covered[changed], axis=0)
    assert len(colours) == 1 and changed.mean() == pytest.approx(share, abs=0.04)
    assert np.array_equal(np.asarray(image), np.asarray(gradient()))  # the image itself stays


def test_blur_goes_with_the_size_of_the_image():
    point = np.zeros((101, 101, 3), dtype=np.uint8)
    point[50, 50] = 255
    widths = []
    for share in (0.01, 0.04):
        row = np.asarray(making.blur(Image.fromarray(point), share, draws()))[50, :, 0].astype(
            float
        )
        widths.append((row > row.max() / 2).sum())
    assert widths[0] < widths[1]


def test_jpeg_is_the_file_read_again():
    image = gradient()
    for quality in (50, 5):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        wanted = np.asarray(Image.open(file))
        assert np.array_equal(np.asarray(making.jpeg(image, quality, draws())), wanted)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_an_image_of_one_pixel_is_copied_too(name):
    function, strengths = TRANSFORMATIONS[name]
    for strength in strengths:
        assert function(Image.new("RGB", (1, 1)), strength, draws()).size == (1, 1)


def named_images(tmp_path):
    folder = image_folder(tmp_path, classes=2)
    data = TrainedData(
        dataset="custom", train_path=str(folder / "train"), val_path=str(folder / "val")
    )
    return NamesBadImages(labelled_images(data, np.asarray, np.asarray)[1])


def test_a_copy_is_a_function_of_image_and_seed(tmp_path):
    named = named_images(tmp_path)
    plan = planned([1, 6], ("crop", "overlay", "none"))
    assert plan[0] == Copy(1, "crop", 0.8) and len(plan) == 14
    made = Copies(named, plan, np.asarray, seed=3)
    again = Copies(named, plan[::-1], np.asarray, seed=3)
    other = Copies(named, plan, np.asarray, seed=4)
    for index in range(len(plan)):
        pixels, original = made[index]
        assert original == plan[index].image
        assert np.array_equal(pixels, again[len(plan) - 1 - index][0])
        if plan[index].transformation == "none":
            assert np.array_equal(pixels, named[original][0])
    assert any(not np.array_equal(made[i][0], other[i][0]) for i in range(len(plan)))
    assert named.dataset.transform is np.asarray  # of the data set itself
    sent = pickle.loads(pickle.dumps(made))  # as to a worker that is spawned
    assert np.array_equal(sent[0][0], made[0][0])


def test_a_data_set_that_keeps_its_images_is_said():
    class Vectors(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.zeros(3), 0

    with pytest.raises(UserError, match="copies need a data set of images"):
        Copies(NamesBadImages(Vectors()), planned([0], ("crop",)), np.asarray, 0)
