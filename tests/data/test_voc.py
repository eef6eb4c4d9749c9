"""PASCAL VOC 2007 from a made tree of torchvision's layout: labels by both kinds of files, and what is missing said."""

import shutil

import numpy as np
import pytest
import torchvision

from carp_plugin.data.voc import CLASSES, VocImages, voc_folder, voc_split
from carp_plugin.errors import UserError
from tests.evaluation.protocols.made_voc import voc_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return voc_tree(tmp_path_factory.mktemp("voc"))


def test_it_reads_what_torchvision_reads(tree):
    """The images in their order, and the labels of the objects that its annotations have."""
    split = voc_split(str(tree), "test")
    theirs = torchvision.datasets.VOCDetection(str(tree), year="2007", image_set="test")
    assert [str(path) for path in split.paths] == theirs.images and len(split.paths) == 20
    for row, (_, target) in enumerate(theirs):
        objects = target["annotation"]["object"]
        for column, kind in enumerate(CLASSES):
            mine = [one["difficult"] for one in objects if one["name"] == kind]
            expected = -1 if not mine else 1 if "0" in mine else 0
            assert split.labels[row, column] == expected


def test_lists_and_annotations_say_the_same(tree, tmp_path):
    listed = voc_split(str(tree), "trainval").labels
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    for file in (copy / "VOCdevkit/VOC2007/ImageSets/Main").glob("*_trainval.txt"):
        file.unlink()
    assert np.array_equal(voc_split(str(copy), "trainval").labels, listed)
    assert {-1, 0, 1} == set(np.unique(listed))


def test_any_of_its_folders_is_given(tree):
    for inside in ("", "VOCdevkit", "VOCdevkit/VOC2007"):
        assert voc_folder(str(tree / inside)) == tree / "VOCdevkit/VOC2007"


def test_images_come_with_their_labels(tree):
    split = voc_split(str(tree), "test")
    images = VocImages(split, lambda image: image.size)
    assert images[3][0] == (12, 10) and images[3][1].tolist() == split.labels[3].tolist()


BROKEN = [
    ("ImageSets", None, "holds no PASCAL VOC 2007"),
    ("ImageSets/Main/test.txt", None, "test.txt cannot be read"),
    ("ImageSets/Main/test.txt", "", "names no image"),
    ("ImageSets/Main/cat_test.txt", "000021 2\n", "must hold a name and 1, -1 or 0"),
    ("ImageSets/Main/cat_test.txt", "000021 1\n", "says nothing of the image 000022"),
    ("JPEGImages/000025.jpg", None, "000025.jpg is missing"),
]


@pytest.mark.parametrize("place, content, said", BROKEN)
def test_what_is_missing_or_broken_earns_a_sentence(place, content, said, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "voc")
    path = tmp_path / "voc/VOCdevkit/VOC2007" / place
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=said):
        voc_split(str(tmp_path / "voc"), "test")


def test_a_broken_annotation_earns_a_sentence(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "voc")
    home = tmp_path / "voc/VOCdevkit/VOC2007"
    (home / "ImageSets/Main/dog_test.txt").unlink()
    (home / "Annotations/000030.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="000030.xml cannot be read .it is no XML"):
        voc_split(str(tmp_path / "voc"), "test")
