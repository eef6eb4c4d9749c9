"""Fashion-MNIST: found where it lies, never fetched unasked; its images known by addresses as files are by paths."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from carp_plugin.compare.gallery import _tile
from carp_plugin.data import idx
from carp_plugin.data.datasets import labelled_images
from carp_plugin.data.folders import check_data, prepare_data_folder
from carp_plugin.data.images import fingerprint, read_image, sizes_of
from carp_plugin.data.labelled import training_transform
from carp_plugin.data.loaders import (
    evaluation_transform,
    fingerprint_of,
    fingerprint_of_validation,
    first_bytes,
    whole_transform,
)
from carp_plugin.data.remarks import remarks_on
from carp_plugin.data.used import place
from carp_plugin.errors import UserError
from carp_plugin.settings.trained import TrainedView
from tests.data.built import labelled_loaders, training_loader
from tests.data.made_idx import write_idx
from tests.helpers import small_settings


@pytest.fixture
def files(tmp_path):
    return write_idx(tmp_path / "fashion-mnist", zipped=True)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without the set."""
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "share")
    monkeypatch.setattr(idx, "DOWNLOADS", tmp_path / "datasets")
    return tmp_path


def settings_of(path, **changes):
    paths = {"data__train_path": str(path), "data__val_path": str(path)}
    return small_settings(Path(path), data__dataset="fashion_mnist", **{**paths, **changes})


def test_images_and_labels_are_torchvisions_in_three_channels(nowhere):
    write_idx(nowhere / "datasets" / "FashionMNIST" / "raw")
    theirs = torchvision.datasets.FashionMNIST(str(nowhere / "datasets"), train=True)
    found = idx.idx_listing(idx.fashion_mnist("auto"), "train")
    assert list(found.classes) == theirs.classes and len(found.samples) == len(theirs)
    for (path, label), (image, their_label) in zip(found.samples, theirs):
        mine = read_image(path)
        assert mine.mode == "RGB" and label == their_label
        assert np.array_equal(np.asarray(mine), np.asarray(image.convert("RGB")))


def test_it_is_found_where_it_was_downloaded_and_where_debian_puts_it(nowhere):
    assert idx.idx_folder("auto") is None
    debian = write_idx(nowhere / "share", zipped=True)
    assert idx.idx_folder("auto") == debian
    downloaded = write_idx(nowhere / "datasets" / "FashionMNIST" / "raw")
    assert idx.idx_folder("auto") == downloaded
    for path in (downloaded, downloaded.parents[1]):  # its folder, or torchvision's root
        assert idx.idx_folder(str(path)) == downloaded
    assert idx.idx_folder(str(nowhere / "slip")) is None


@pytest.mark.parametrize(
    "path, said", [("auto", "fashion_mnist is neither in"), ("slip", "slip holds no Fashion")]
)
def test_a_missing_set_earns_both_ways_to_get_it(path, said, nowhere):
    with pytest.raises(
        UserError, match=f"{said}.*apt-get install dataset-fashion-mnist.*prepare=down"
    ):
        check_data(settings_of(path).data)


def test_it_is_downloaded_on_request_only_and_once(nowhere, monkeypatch):
    roots = []

    def download(root, download):
        assert download
        roots.append(root)
        write_idx(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    prepare_data_folder(None, "auto")
    assert not roots
    prepare_data_folder("download", "auto")
    prepare_data_folder("download", "auto")
    assert roots == [nowhere / "datasets"] and idx.idx_folder("auto") is not None


def test_a_download_that_fails_says_why(nowhere, monkeypatch):
    def download(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    with pytest.raises(UserError, match=r"cannot download .* \(no route to host\); .*apt-get"):
        prepare_data_folder("download", "auto")


def test_a_path_of_a_user_is_no_address(tmp_path):
    assert idx.pixels(str(tmp_path / "train#3.png")) is None
    assert idx.pixels("/root/test/a.png") is None and idx.image_at("train#00001") is None


def test_an_address_beyond_the_last_image_is_named(files):
    with pytest.raises(UserError, match="train#00020 is not there; there are 20 images"):
        read_image(f"{files}/train#00020")


def test_images_and_labels_that_do_not_fit_are_named(files):
    os.replace(files / "t10k-labels-idx1-ubyte.gz", files / "train-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match="20 images of .* have 10 labels"):
        idx.idx_listing(files, "train")


def test_the_set_is_known_wherever_it_lies_and_however_it_is_packed(files, tmp_path):
    def known(path):
        settings = settings_of(path)
        data, loader = settings.data, training_loader(settings)
        prints = (fingerprint_of(data, loader), fingerprint_of(data, loader, first_bytes))
        return (*prints, fingerprint_of_validation(data))

    first = known(files)
    assert None not in first and known(write_idx(tmp_path / "plain")) == first
    changed = write_idx(tmp_path / "changed")
    path = changed / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    now = known(changed)
    assert now[0] != first[0] and now[2] == first[2]
    (changed / "other").mkdir()
    assert fingerprint([f"{changed}/train#00001"], str(changed)) != fingerprint(
        [f"{changed}/train#00002"], str(changed)
    )


def test_loaders_give_views_of_three_equal_channels_and_the_labels(files):
    settings = settings_of(files, data__eval_transform={"crop_size": 28})
    views = settings.augmentations[0]
    assert views.mean is None
    train, val = labelled_loaders(settings)
    images, labels = next(iter(val))
    assert images.shape[1:] == (3, 28, 28) and labels.tolist() == list(range(len(labels)))
    raw = images * torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    raw += torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    assert torch.allclose(raw[:, 0], raw[:, 1], atol=1e-6)
    pixels = torch.tensor(idx.pixels(f"{files}/test#00000").astype(np.float32)) / 255
    assert torch.allclose(raw[0, 0], pixels, atol=1e-6)
    indexes, crops, targets = next(iter(training_loader(settings)))
    assert crops[0].shape[1:] == (3, 16, 16) and (targets == indexes % 10).all()
    assert not remarks_on(settings.data)


def test_without_a_size_images_are_taken_as_they_are(files):
    image = read_image(f"{files}/train#00003")
    view = TrainedView()
    for transform in (
        evaluation_transform("fashion_mnist", None, view),
        whole_transform("fashion_mnist", None, view),
        training_transform(
            "fashion_mnist", None, evaluation_transform("fashion_mnist", None, view)
        ),
    ):
        assert transform(image).shape == (3, 28, 28)
    large = torchvision.transforms.functional.resize(image, 100)
    assert whole_transform("fashion_mnist", None, view)(large).shape == (3, 28, 28)


def test_an_address_has_a_size_a_place_in_a_gallery_and_words_for_people(files):
    path = f"{files}/test#00002"
    assert sizes_of([path]) == [(28, 28)] and _tile(path, 64).size == (64, 64)
    settings = settings_of(files)
    assert place(settings.data) == f"fashion_mnist in {files}"
    train, _ = labelled_images(settings.data, None, None)
    assert train.samples[4] == (f"{files}/train#00004", 4)


@pytest.mark.skipif(not idx.DEBIAN.is_dir(), reason="the package dataset-fashion-mnist")
def test_debians_set_is_balanced():
    found = idx.idx_listing(idx.DEBIAN, "train")
    assert np.bincount([label for _, label in found.samples]).tolist() == [6_000] * 10
