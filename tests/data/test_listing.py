"""One listing for every use: what is an image, in which order, with which label, and what is said of the rest."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from carp_plugin.data import listing
from carp_plugin.data.datasets import counts, labelled_images, pretraining_images
from carp_plugin.data.folders import count_classes
from carp_plugin.data.images import NamesBadImages, fingerprint
from carp_plugin.data.listing import is_image_name, list_images
from carp_plugin.data.loaders import dali_files, fingerprint_of
from carp_plugin.data.remarks import remarks_on
from carp_plugin.data.used import training_listing, validation_listing
from carp_plugin.errors import UserError
from carp_plugin.host import prepare_datasets
from carp_plugin.training.pretraining import check_run
from tests.data.built import labelled_loaders, training_loader
from tests.helpers import image_folder, small_settings, write_image

CAN_AVIF = ".avif" in listing.readable_endings()


@pytest.fixture
def images(tmp_path):
    """24 images to train and 24 to validate, in 6 classes."""
    return image_folder(tmp_path / "images")


def names(found):
    return [os.path.relpath(path, found.root) for path, _ in found.samples]


def left(found):
    return {why: count for why, (count, _) in found.left_out.items()}


def put(folder, *files):
    for name in files:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def remarks(settings):
    check_run(settings)
    return remarks_on(settings.data, settings.data.no_labels)


@pytest.mark.parametrize(
    "name, image",
    [
        *(
            (f"a{ending}", True)
            for ending in ".jpg .JPE .jfif .png .gif .jp2 .webp .TIF .pgm".split()
        ),
        ("a.avif", CAN_AVIF),
        ("a.heic", False),
        *((name, False) for name in "LICENSE a.h5 a.mpg a.eps a.fits a.pdf notes.txt png".split()),
        *((name, False) for name in "._a.png .a.png .DS_Store Thumbs.db desktop.ini".split()),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_images_by_their_names_in_class_folders_and_flat_ones(name, image, labelled, tmp_path):
    put(tmp_path, f"c0/{name}" if labelled else name)
    found = list_images(tmp_path, labelled)
    assert is_image_name(name) == image == bool(found.samples) != bool(found.left_out)


@pytest.mark.parametrize("junk", [".git/a.png", "__MACOSX/a.png", "@eaDir/a.png", ".cache/b/c.jpg"])
@pytest.mark.parametrize("where", ["", "class_0", "class_0/below"])
def test_hidden_folders_at_any_depth_are_no_classes_and_hold_no_images(junk, where, images):
    put(images / "train" / where, junk)
    found = list_images(images / "train", True)
    assert len(found.samples) == 24 and len(found.classes) == 6 and left(found) == {"hidden": 1}
    settings = small_settings(images)
    (said,) = remarks(settings)
    assert "holds 24 images; left out: 1 hidden (" in said and not said.startswith("warning")
    assert len(training_loader(settings).dataset) == 24
    assert count_classes("custom", str(images / "train")) == 6


def test_order_and_labels_are_torchvisions_and_a_fingerprint_of_before_holds(images):
    for name in ("class_1/b/x.png", "class_1/a-c/x.png", "class_1/a/x.png", "class_1-1/x.png"):
        write_image(images / "train" / name, seed=0)
    root = images / "train"
    assert list_images(root, True).samples == ImageFolder(str(root)).samples
    settings = small_settings(images)
    theirs = NamesBadImages(prepare_datasets("custom", None, train_data_path=root))
    assert fingerprint_of(settings.data, training_loader(settings)) == fingerprint(
        theirs.files(), str(root)
    )


def test_a_flat_folder_keeps_its_order(images, tmp_path):
    for i in range(12):
        write_image(tmp_path / "flat" / f"{i}.png", seed=i)
    theirs = prepare_datasets("custom", None, train_data_path=tmp_path / "flat", no_labels=True)
    ours = list_images(tmp_path / "flat", False)
    assert [path for path, _ in ours.samples] == NamesBadImages(theirs).files()
    assert {label for _, label in ours.samples} == {-1}


def test_a_part_is_the_one_that_the_host_takes(images):
    settings = small_settings(images, data__fraction=0.5)
    theirs = prepare_datasets("custom", None, train_data_path=images / "train", data_fraction=0.5)
    ours = pretraining_images(settings.data, None)
    assert [tuple(sample) for sample in theirs.samples] == ours.samples and len(ours) == 12


def test_a_tree_without_labels_is_walked(images, tmp_path):
    for i in range(8):
        write_image(tmp_path / "photos" / "2024" / f"0{i % 4}" / f"{i}.png", seed=i)
    write_image(tmp_path / "photos" / "first.png", seed=9)
    changes = {"data__train_path": str(tmp_path / "photos"), "data__no_labels": True}
    settings = small_settings(images, **changes, data__val_path=None)
    assert remarks(settings) == []
    _, _, labels = next(iter(training_loader(settings)))
    assert len(training_loader(settings).dataset) == 9 and set(labels.tolist()) == {-1}
    assert len(dali_files(settings.data)) == 9
    assert count_classes("custom", settings.data.train_path, no_labels=True) == 1


def test_images_beside_class_folders_are_warned_of(images):
    for i in range(3):
        write_image(images / "train" / f"{i}.png", seed=i)
    (said,) = remarks(small_settings(images))
    assert said.startswith("warning: data.train_path=") and "data.no_labels=True" in said
    assert "holds 24 images; left out: 3 images beside the class folders (0.png, …)" in said
    unlabelled = small_settings(images, data__no_labels=True, data__val_path=None)
    assert len(training_loader(unlabelled).dataset) == 27 and remarks(unlabelled) == []


def test_what_is_left_out_is_named_with_ending_and_count(images):
    put(images / "train/class_0", "a.h5", "b.h5", "LICENSE", "._0.png", "x.cr2")
    put(images / "val", "list.txt")
    train, val = remarks(small_settings(images))
    assert train.startswith("warning: ") and "convert them" in train  # raw photographs are missed
    for part in ("2 of .h5 (class_0/a.h5, …)", "1 without an ending (class_0/LICENSE)"):
        assert part in train
    assert "1 hidden (class_0/._0.png)" in train and "1 of .cr2 (class_0/x.cr2)" in train
    assert "val holds 24 images; left out: 1 of .txt (list.txt)" in val


def test_links_are_followed_and_loops_are_not(images, tmp_path):
    root = images / "train"
    shutil.move(str(root / "class_0"), tmp_path / "elsewhere")
    (root / "class_0").symlink_to(tmp_path / "elsewhere")
    (root / "class_1/more").symlink_to(tmp_path / "elsewhere")
    (root / "class_2/up").symlink_to(root)
    (root / "class_3/own").symlink_to("own")
    (root / "class_4/here").symlink_to(".")
    found = list_images(root, True)
    assert len(found.samples) == 24 + 4 and len(found.classes) == 6
    assert left(found) == {"links back to a folder": 2, "": 1}
    assert len(list_images(root, False).samples) == 24 + 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_said(images):
    (images / "train/class_0").chmod(0)
    try:
        with pytest.raises(UserError, match="class_0 cannot be listed"):
            list_images(images / "train", True)
    finally:
        (images / "train/class_0").chmod(0o755)


def test_one_listing_for_counts_loaders_dali_hold_outs_and_comparisons(images, tmp_path):
    root = images / "train"
    for i in range(2):
        write_image(root / "class_0/below" / f"{i}.png", seed=i)
    put(root, "class_0/Thumbs.db", "class_1/._0.png", ".git/HEAD", "class_2/a.h5")
    settings = small_settings(images)
    files = training_loader(settings).dataset.dataset.files()
    train, _ = labelled_loaders(settings)
    assert (len(files), 24) == counts(settings.data)
    assert sorted(files) == dali_files(settings.data) == sorted(train.dataset.files())
    held = small_settings(images, data__holdout={"fraction": 0.25}).data
    parts = training_listing(held).samples, validation_listing(held).samples
    assert [len(part) for part in parts] == [19, 7] and counts(held) == (19, 7)
    assert sorted(path for part in parts for path, _ in part) == sorted(files)


def test_labels_are_those_of_the_training_folders_names(images):
    shutil.rmtree(images / "val/class_1")
    shutil.rmtree(images / "val/class_3")
    put(images / "val", "class_3/.keep")
    settings = small_settings(images)
    (_, warned) = remarks(settings)
    assert "holds no image of 2 of the 6 classes" in warned and "(class_1, class_3)" in warned
    _, val = labelled_images(settings.data, None, None)
    assert [label for _, label in val.samples] == [i for i in (0, 2, 4, 5) for _ in range(4)]
    assert val.classes == [f"class_{i}" for i in range(6)]
    put(images / "val", "cats/a.png")
    with pytest.raises(UserError, match=r"differ \(cats, class_1\): cats is no class of the train"):
        check_run(settings)
    shutil.rmtree(images / "val/cats")
    for i in (0, 2, 4, 5):
        shutil.rmtree(images / f"val/class_{i}")
    with pytest.raises(UserError, match=r"data.val_path=\S+ holds no image of the class class_3"):
        check_run(settings)


def test_a_listing_is_kept_until_a_folder_changes(images, monkeypatch):
    root = images / "train"
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))
    first = list_images(root, True)
    assert list_images(root, True) is first
    write_image(root / "class_0/9.png", seed=0)
    assert len(list_images(root, True).samples) == 25
    (root / "class_0/9.png").unlink()  # within the moment that time stamps cannot tell
    assert len(list_images(root, True).samples) == 24


def test_the_ending_does_not_say_the_format(tmp_path):
    folder = tmp_path / "c0"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "a.jfif", format="JPEG")
    found = list_images(tmp_path, True)
    assert names(found) == ["c0/a.jfif"]


def test_a_validation_folder_within_the_training_one_has_its_labels(images):
    data = small_settings(images, data__val_path=str(images / "train")).data
    assert validation_listing(data) == list_images(images / "train", True)
