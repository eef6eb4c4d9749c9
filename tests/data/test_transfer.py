"""Data sets of transfer: torchvision's own layouts, made small, are really read; signatures of all; what is missing."""

import gzip
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat
from torchvision import transforms

from carp_plugin.data import idx
from carp_plugin.data.transfer import KNOWN, draw, open_dataset
from carp_plugin.errors import UserError
from carp_plugin.settings.protocols import DATASETS
from tests.data.made_idx import write_idx
from tests.helpers import write_image


def as_is(image):
    assert image.mode == "RGB"
    return image


def flowers(root, monkeypatch):
    base = root / "flowers-102"
    for i in range(1, 13):
        write_image(base / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(base / "imagelabels.mat", {"labels": np.arange(12) % 3 + 1})
    ids = {"trnid": [1, 2, 3], "valid": [4, 5, 6], "tstid": [7, 8, 9, 10, 11, 12]}
    savemat(base / "setid.mat", {name: np.array(some) for name, some in ids.items()})
    names = torchvision.datasets.Flowers102._file_dict
    unchecked = {kind: (name, None) for kind, (name, _) in names.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", unchecked)
    return 6, 6, [0, 1, 2] * 2, [0, 1, 2] * 2


def dtd(root, monkeypatch):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for kind in ("banded", "dotted"):
            write_image(base / "images" / kind / f"{kind}_{number}.jpg", number)
            lines.append(f"{kind}/{kind}_{number}.jpg\n")
        (base / "labels" / f"{part}1.txt").write_text("".join(lines))
    return 4, 2, [0, 1, 0, 1], [0, 1]


def pets(root, monkeypatch):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, some in (("trainval", (1, 2)), ("test", (3,))):
        lines = ""
        for label, kind in enumerate(("Abyssinian", "beagle"), 1):
            for number in some:
                write_image(base / "images" / f"{kind}_{number}.jpg", number)
                lines += f"{kind}_{number} {label} 1 1\n"
        (base / "annotations" / f"{part}.txt").write_text(lines)
    return 4, 2, [0, 0, 1, 1], [0, 1]


def mnist(root, monkeypatch):
    write_idx(root / "MNIST" / "raw")
    return 20, 10, [*range(10)] * 2, [*range(10)]


def fashion(root, monkeypatch):
    write_idx(root / "FashionMNIST" / "raw")
    return 20, 10, [*range(10)] * 2, [*range(10)]


def food(root, monkeypatch):
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for part, some in (("train", (1, 2)), ("test", (3,))):
        names = {kind: [f"{kind}/{i}" for i in some] for kind in ("pizza", "sushi")}
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))
        for name in sum(names.values(), []):
            write_image(base / "images" / f"{name}.jpg", 3)
    return 4, 2, [0, 0, 1, 1], [0, 1]


def eurosat(root, monkeypatch):
    for kind in ("Forest", "River"):
        for i in range(10):
            write_image(root / "eurosat" / "2750" / kind / f"{kind}_{i}.jpg", i)
    return 16, 4, [0] * 8 + [1] * 8, [0, 0, 1, 1]


def caltech(root, monkeypatch):
    """Its files have no names that torchvision would tell; one image is grey."""
    base = root / "caltech101"
    for kind in ("BACKGROUND_Google", "ant", "bass"):
        for i in range(1, 36):
            mode = "L" if i % 2 else "RGB"
            write_image(base / "101_ObjectCategories" / kind / f"image_{i:04d}.jpg", i, 4, mode)
    (base / "Annotations").mkdir()
    return 60, 10, [0] * 30 + [1] * 30, [0] * 5 + [1] * 5


MADE = {
    "flowers102": flowers,
    "dtd": dtd,
    "oxford_iiit_pet": pets,
    "mnist": mnist,
    "fashion_mnist": fashion,
    "food101": food,
    "eurosat": eurosat,
    "caltech101": caltech,
}


@pytest.mark.parametrize("name", MADE)
def test_torchvisions_layout_is_read(name, tmp_path, monkeypatch):
    train, test, labels, test_labels = MADE[name](tmp_path, monkeypatch)
    opened = open_dataset(name, str(tmp_path), as_is)
    assert (len(opened.train), len(opened.test)) == (train, test)
    assert [label for _, label in (opened.train[i] for i in range(train))] == labels
    assert [label for _, label in (opened.test[i] for i in range(test))] == test_labels
    assert ("drawn by seed 0" in opened.split) == (KNOWN[name].drawn is not None)
    assert ("published" in opened.split) == (KNOWN[name].drawn is None)


@pytest.mark.parametrize("name", ["flowers102", "mnist", "caltech101"])
def test_pixels_are_torchvisions(name, tmp_path, monkeypatch):
    MADE[name](tmp_path, monkeypatch)
    opened = open_dataset(name, str(tmp_path), transforms.ToTensor())
    known = KNOWN[name]
    theirs = getattr(torchvision.datasets, known.name)(str(tmp_path), **known.test)
    image = theirs[0][0].convert("RGB")
    pool = [opened.test[i][0] for i in range(len(opened.test))]
    pool += [opened.train[i][0] for i in range(len(opened.train))]
    expected = transforms.ToTensor()(image)
    assert any(bool((one == expected).all()) for one in pool)


def test_the_settings_know_the_names():
    assert set(DATASETS) == set(KNOWN)


@pytest.mark.parametrize("name", DATASETS)
def test_torchvision_takes_the_arguments_of_each(name, tmp_path):
    """Each split is one that the class accepts: it does not complain of it, but of the images that are not there."""
    known = KNOWN[name]
    kind = getattr(torchvision.datasets, known.name)
    for arguments in (*known.train, known.test):
        inspect.signature(kind).bind(str(tmp_path), **arguments)
        if known.download:
            assert "download" in inspect.signature(kind).parameters
        with pytest.raises((RuntimeError, FileNotFoundError)) as raised:
            kind(str(tmp_path), **arguments)
        assert "split" not in str(raised.value), raised.value


def test_files_of_debians_package_are_read(tmp_path, monkeypatch):
    write_idx(tmp_path / "share", zipped=True)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "share")
    opened = open_dataset("fashion_mnist", None, as_is)
    assert (len(opened.train), len(opened.test)) == (20, 10)
    assert opened.root == str(tmp_path / "share") and opened.train[3][1] == 3
    write_idx(tmp_path / "root" / "FashionMNIST" / "raw")
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path / "root"), train=True)
    assert np.array_equal(opened.train[7][0], np.asarray(theirs[7][0].convert("RGB")))
    assert open_dataset("fashion_mnist", str(tmp_path / "root"), as_is).root.endswith("root")


@pytest.mark.skipif(not idx.DEBIAN.is_dir(), reason="the package dataset-fashion-mnist")
def test_debians_fashion_mnist_is_whole():
    opened = open_dataset("fashion_mnist", None, as_is)
    assert (len(opened.train), len(opened.test)) == (60_000, 10_000)


@pytest.mark.parametrize("spoil", ["cut", "magic", "no gzip"])
def test_a_damaged_idx_file_is_named(spoil, tmp_path):
    write_idx(tmp_path / "fashion-mnist", zipped=True)
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    damaged = {"cut": content[:-5], "magic": b"\1" + content[1:]}
    path.write_bytes(gzip.compress(damaged[spoil]) if spoil in damaged else content)
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz (is no IDX|cannot be read)"):
        open_dataset("fashion_mnist", str(tmp_path), as_is)


def test_a_draw_is_stratified_seeded_and_disjoint():
    labels = np.repeat(np.arange(4), [40, 100, 3, 1])
    fitted, measured = draw(labels, 30, 0)
    assert not set(fitted) & set(measured) and len(fitted) + len(measured) == len(labels)
    assert np.bincount(labels[fitted]).tolist() == [30, 30, 2, 1]
    again, other = draw(labels, 30, 0)[0], draw(labels, 30, 1)[0]
    assert np.array_equal(again, fitted) and not np.array_equal(other, fitted)
    assert np.bincount(labels[draw(labels, 0.8, 0)[0]]).tolist() == [32, 80, 2, 1]
    assert np.bincount(labels[draw(labels, 30, 0, 20)[1]], minlength=4).tolist() == [10, 20, 1, 0]


def folders(root, parts=("train", "val"), kinds=("a", "b")):
    for part in parts:
        for label, kind in enumerate(kinds):
            for i in range(3):
                write_image(root / part / kind / f"{i}.png", 10 * label + i)
    return root


@pytest.mark.parametrize("part", ["val", "test"])
def test_any_folder_of_class_folders_is_read(part, tmp_path):
    folders(tmp_path, ("train", part))
    opened = open_dataset(f"mine={tmp_path}", None, as_is)
    assert (len(opened.train), len(opened.test)) == (6, 6)
    assert opened.split == f"folders train, {part}"
    assert opened.test[5][1] == 1


def missing(name):
    return open_dataset(name, "nowhere", as_is)


@pytest.mark.parametrize("name", [n for n in DATASETS if n not in ("fashion_mnist",)])
def test_a_data_set_that_is_not_there_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"^{name}: nowhere\S* is not there; .*data_root"
    ) as raised:
        missing(name)
    assert ("--download" in str(raised.value)) == KNOWN[name].download
    assert not list(tmp_path.iterdir())


def test_what_else_is_wrong_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected the folders .*/train and .*/val or .*/test"):
        open_dataset("mine=nowhere", None, as_is)
    folders(tmp_path / "a")
    (tmp_path / "a" / "val" / "b").rename(tmp_path / "a" / "val" / "c")
    with pytest.raises(UserError, match="the class c of .*val is none of train"):
        open_dataset(f"mine={tmp_path / 'a'}", None, as_is)
    with pytest.raises(UserError, match="torchvision cannot download it"):
        open_dataset("stanford_cars", str(tmp_path), as_is, download=True)
    (tmp_path / "flowers-102" / "jpg").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Flowers102 in \S* cannot be read \(Dataset not found or"):
        open_dataset("flowers102", str(tmp_path), as_is)


def test_parts_of_other_classes_are_refused(tmp_path, monkeypatch):
    dtd(tmp_path, monkeypatch)
    labels = tmp_path / "dtd" / "dtd" / "labels" / "test1.txt"
    labels.write_text(labels.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match="dtd: the parts .* do not have the same classes"):
        open_dataset("dtd", str(tmp_path), as_is)


@pytest.mark.parametrize(
    "place, name", [("jpg/image_00008.jpg", "test"), ("jpg/image_00005.jpg", "train")]
)
def test_an_image_that_cannot_be_read_is_named(place, name, tmp_path, monkeypatch):
    flowers(tmp_path, monkeypatch)
    (tmp_path / "flowers-102" / place).write_bytes(b"no image")
    opened = open_dataset("flowers102", str(tmp_path), as_is)
    part = getattr(opened, name)
    with pytest.raises(UserError, match=rf"the image \S*{Path(place).name} cannot be read"):
        [part[i] for i in range(len(part))]


def test_grey_images_become_three_channels(tmp_path, monkeypatch):
    mnist(tmp_path, monkeypatch)
    opened = open_dataset("mnist", str(tmp_path), transforms.ToTensor())
    image = opened.train[0][0]
    assert image.shape == (3, 28, 28) and bool((image[0] == image[2]).all())
