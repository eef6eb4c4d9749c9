"""Loaders of a run: what is read, how it is brought to a size, and which file was to blame."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from carp_plugin.data.images import ImageError, NamesBadImages
from carp_plugin.data.loaders import (
    dali_files,
    evaluation_transform,
    fingerprint_of,
    fingerprint_of_validation,
    first_bytes,
)
from carp_plugin.errors import UserError
from tests.data.built import labelled_loaders, training_loader
from tests.helpers import image_folder, small_settings, write_image


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def test_labelled_images_come_whole_and_in_order(images):
    """Neither shuffled nor dropped, for training images too: they are the bank of the k-NN."""
    train, val = labelled_loaders(small_settings(images, optimizer__batch_size=5))
    for loader in (train, val):
        labels = torch.cat([labels for _, labels in loader])
        assert labels.tolist() == [label for label in range(6) for _ in range(4)]


def test_evaluation_crops_the_centre_at_the_size_asked_for(images):
    view = small_settings(images).augmentations[0]

    def out_of(size, image):
        data = small_settings(images, data__eval_transform=size).data
        return evaluation_transform(data.dataset, data.eval_transform, view)(image)

    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (2, 2, 18, 18))
    out = out_of({"resize": None, "crop_size": 16}, image)
    # the black frame of two pixels is cropped away: only white is left
    assert out.shape == (3, 16, 16) and out.min() > 2
    assert out_of({"resize": 32, "crop_size": 16}, image).shape == (3, 16, 16)
    assert out_of(None, image).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode, images):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    path = images / "train" / "class_0" / f"odd{suffix}"
    if mode == "I;16":
        Image.new("I;16", (20, 20), 40000).save(path)
    else:
        write_image(path, seed=1, mode=mode)
    loader = labelled_loaders(small_settings(images))[0]
    first = torch.cat([views for views, _ in loader])
    assert first.shape == (25, 3, 16, 16) and torch.isfinite(first).all()


def test_a_truncated_image_is_named(images):
    path = images / "train" / "class_2" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    loader = training_loader(small_settings(images))
    with pytest.raises(ImageError, match="class_2/1.png cannot be read"):
        list(loader)


def test_a_bad_image_is_named_in_the_flat_folder_and_by_a_worker(images):
    path = images / "train" / "class_2" / "1.png"
    path.write_bytes(b"")
    flat = images / "train" / "class_2"
    settings = small_settings(
        images,
        data__train_path=str(flat),
        data__no_labels=True,
        data__val_path=None,
        data__num_workers=1,
        optimizer__batch_size=4,
    )
    with pytest.raises(ImageError, match="class_2/1.png cannot be read"):
        list(training_loader(settings))


def test_other_errors_pass_through():
    class Broken:
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(KeyError):
        NamesBadImages(Broken())[0]


def test_files_are_counted_as_dali_reads_them(images):
    assert len(dali_files(small_settings(images).data)) == 24


def test_images_are_known_wherever_they_lie(images, tmp_path):
    def known(root):
        paths = {"data__train_path": f"{root}/train", "data__val_path": f"{root}/val"}
        settings = small_settings(images, **paths)
        data, loader = settings.data, training_loader(settings)
        prints = (fingerprint_of(data, loader), fingerprint_of(data, loader, first_bytes))
        return (*prints, fingerprint_of_validation(data))

    first = known(images)
    moved = Path(shutil.copytree(images, tmp_path / "elsewhere"))
    assert None not in first and known(moved) == known(f"{tmp_path}//elsewhere/.") == first
    path = moved / "train/class_0/0.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # as long as before
    now = known(moved)
    assert now[0] == first[0] and now[1] != first[1] and now[2] == first[2]
    (moved / "val/class_0/0.png").unlink()
    assert known(moved)[2] != first[2]


def test_too_few_images_for_a_batch_say_how_many_fit(images):
    with pytest.raises(UserError, match="24 images, fewer than one batch of 32.*batch_size=24"):
        training_loader(small_settings(images, optimizer__batch_size=32))
