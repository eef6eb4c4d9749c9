"""Loaders of a run: what is read, how it is brought to a size, and which file was to blame."""

import pytest
import torch
from PIL import Image

from carp_plugin.data.images import ImageError, NamesBadImages
from carp_plugin.data.loaders import (
    count_files,
    evaluation_transform,
    labelled_loaders,
    pretrain_loader,
)
from carp_plugin.errors import UserError
from carp_plugin.settings.pretraining import checked
from tests.helpers import image_folder, small_cfg, write_image


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def test_labelled_images_come_whole_and_in_order(images):
    """Neither shuffled nor dropped, for training images too: they are the bank of the k-NN."""
    train, val = labelled_loaders(checked(small_cfg(images, optimizer__batch_size=5)))
    for loader in (train, val):
        labels = torch.cat([labels for _, labels in loader])
        assert labels.tolist() == [label for label in range(6) for _ in range(4)]


def test_evaluation_crops_the_centre_at_the_size_asked_for(images):
    cfg = checked(small_cfg(images))
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (2, 2, 18, 18))
    out = evaluation_transform(cfg)(image)
    # the black frame of two pixels is cropped away: only white is left
    assert out.shape == (3, 16, 16) and out.min() > 2
    cfg.data.eval_transform.resize = 32
    assert evaluation_transform(cfg)(image).shape == (3, 16, 16)
    cfg.data.eval_transform = None
    assert evaluation_transform(cfg)(image).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode, images):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    path = images / "train" / "class_0" / f"odd{suffix}"
    if mode == "I;16":
        Image.new("I;16", (20, 20), 40000).save(path)
    else:
        write_image(path, seed=1, mode=mode)
    loader = labelled_loaders(checked(small_cfg(images)))[0]
    first = torch.cat([views for views, _ in loader])
    assert first.shape == (25, 3, 16, 16) and torch.isfinite(first).all()


def test_a_truncated_image_is_named(images):
    path = images / "train" / "class_2" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    loader = pretrain_loader(checked(small_cfg(images)))
    with pytest.raises(ImageError, match="class_2/1.png cannot be read"):
        list(loader)


def test_a_bad_image_is_named_in_the_flat_folder_and_by_a_worker(images):
    path = images / "train" / "class_2" / "1.png"
    path.write_bytes(b"")
    flat = images / "train" / "class_2"
    cfg = checked(
        small_cfg(
            images,
            data__train_path=str(flat),
            data__no_labels=True,
            data__val_path=None,
            data__num_workers=1,
            optimizer__batch_size=4,
        )
    )
    with pytest.raises(ImageError, match="class_2/1.png cannot be read"):
        list(pretrain_loader(cfg))


def test_other_errors_pass_through():
    class Broken:
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(KeyError):
        NamesBadImages(Broken())[0]


def test_files_are_counted_as_dali_reads_them(images):
    assert count_files(checked(small_cfg(images))) == 24


def test_too_few_images_for_a_batch_say_how_many_fit(images):
    with pytest.raises(UserError, match="24 images, fewer than one batch of 32.*batch_size=24"):
        pretrain_loader(checked(small_cfg(images, optimizer__batch_size=32)))
