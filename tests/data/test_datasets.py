"""Which images of a data set are used: drawn, held out, of folders and of the host's own sets alike."""

from collections import Counter

import pytest
from PIL import Image
from torch.utils.data import Dataset

from carp_plugin.data import datasets
from carp_plugin.data.datasets import counts, labelled_images, pretraining_images, subsets_of
from carp_plugin.data.folders import check_data
from carp_plugin.data.loaders import drawn_of, fingerprint_of, fingerprint_of_validation
from carp_plugin.data.remarks import remarks_on
from carp_plugin.data.used import training_listing, validation_listing
from carp_plugin.errors import UserError
from tests.data.built import labelled_loaders, training_loader
from tests.helpers import image_folder, small_settings

DRAWN = {"data__train_images": 13, "data__val_images": 6, "data__subset_seed": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images to train and 24 to validate, in 6 classes."""
    return image_folder(tmp_path_factory.mktemp("images"))


def paths(found):
    return [path for path, _ in found.samples]


def test_loaders_counts_fingerprints_and_the_record_are_of_what_was_drawn(images):
    settings = small_settings(images, **DRAWN)
    data, loader = settings.data, training_loader(settings)
    check_data(data)
    train, val = labelled_loaders(settings)
    files = loader.dataset.dataset.files()
    assert files == train.dataset.files() == paths(training_listing(data))
    assert counts(data) == (13, 6) == (len(files), len(val.dataset))
    assert Counter(label for _, label in validation_listing(data).samples) == dict.fromkeys(
        range(6), 1
    )
    everything = small_settings(images)
    assert fingerprint_of(data, loader) != fingerprint_of(
        everything.data, training_loader(everything)
    )
    assert fingerprint_of_validation(data) != fingerprint_of_validation(everything.data)
    record = drawn_of(data, loader, val)
    assert record == subsets_of(*labelled_images(data, None, None))
    assert record["train"]["name"] == "13 drawn by seed 2" and record["val"]["of"] == 24
    assert drawn_of(everything.data, training_loader(everything), None) == {}
    assert drawn_of(data, None, None) == {"train": record["train"]}  # DALI's
    assert not remarks_on(data)


def test_another_seed_draws_others_and_a_part_lies_within_a_larger_one(images):
    def drawn(**changes):
        return set(paths(training_listing(small_settings(images, **{**DRAWN, **changes}).data)))

    assert drawn() == drawn() != drawn(data__subset_seed=3)
    assert drawn(data__train_images=6) < drawn(data__train_images=12)


def test_a_hold_out_is_validated_on_and_not_trained_on(images):
    settings = small_settings(images, data__train_images=18, data__holdout={"fraction": 0.4})
    data = settings.data
    train, val = training_listing(data), validation_listing(data)
    assert counts(data) == (12, 6) and not set(paths(train)) & set(paths(val))
    assert all(str(images / "train") in path for path in paths(train) + paths(val))
    assert val.subset.name == "18 drawn by seed 0, 40 % of every class (seed 0) held out"
    assert train.subset.name == "18 drawn by seed 0, without 40 % of every class (seed 0)"
    assert [len(part.dataset) for part in labelled_loaders(settings)] == [12, 6]
    fewer = small_settings(
        images, data__holdout={"fraction": 0.5}, data__val_images=6, data__val_path="unread"
    ).data
    check_data(fewer)
    assert counts(fewer) == (12, 6)


def test_unlabelled_images_are_drawn_as_one_class(images):
    settings = small_settings(
        images, data__no_labels=True, data__val_path=None, data__train_images=9
    )
    assert len(pretraining_images(settings.data, None)) == 9


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            {"data__train_images": 25},
            r"train_images=25 cannot be drawn from 24 images.*train_images=24",
        ),
        (
            {"data__train_images": 5},
            r"of 6 classes, each of which needs one; give data.train_images=6",
        ),
        ({"data__val_images": 25}, r"data.val_images=25 cannot be drawn"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_begins(changes, says, images):
    with pytest.raises(UserError, match=says):
        check_data(small_settings(images, **changes).data)


class Own(Dataset):
    """Forty images as torchvision's CIFAR has them; items as pretraining or evaluation takes them."""

    def __init__(self, transform, indexed, shift):
        self.targets = [(i + shift) % 10 for i in range(40)]
        self.transform, self.indexed, self.shift = transform, indexed, shift

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = self.transform(Image.new("RGB", (4, 4), (index + 100 * self.shift, 0, 0)))
        return (index, image, self.targets[index]) if self.indexed else (image, self.targets[index])


def red(image):
    return image.getpixel((0, 0))[0]


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(datasets, "prepare_datasets", lambda name, t, **_: Own(t, True, 0))
    monkeypatch.setattr(
        datasets,
        "prepare_classification_datasets",
        lambda name, first, second, **_: (Own(first, False, 0), Own(second, False, 1)),
    )


def test_images_of_the_hosts_own_sets_are_drawn_and_held_out_alike(host, images):
    data = small_settings(images, data__dataset="cifar10", data__train_images=20).data
    trained = pretraining_images(data, red)
    assert [item[0] for item in trained] == list(range(20))  # among those that there are
    labelled, val = labelled_images(data, red, red)
    assert [item[1:] for item in trained] == list(labelled) and len(val) == 40
    assert Counter(labelled.targets) == dict.fromkeys(range(10), 2)
    held = small_settings(images, data__dataset="cifar10", data__holdout={"fraction": 0.25}).data
    train, val = labelled_images(held, red, red)
    assert counts(held) == (30, 10) and {x for x, _ in train} | {x for x, _ in val} == set(
        range(40)
    )
    assert subsets_of(train, val)["val"]["images"] == 10
    assert labelled_images(small_settings(images, data__dataset="cifar10").data, red, red)[1].shift
