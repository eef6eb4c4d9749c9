"""Subsets of labelled images: drawn class by class, or listed by name; the same whatever the order of the files."""

import hashlib
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from carp_plugin.data.subsets import drawn, subset_of
from carp_plugin.errors import UserError

SIZES = {"cat": 40, "dog": 7, "eel": 1}
SAMPLES = [
    (f"/root/{name}/{name}_{number}.png", label)
    for label, (name, size) in enumerate(SIZES.items())
    for number in range(size)
]


def asked(fraction=1.0, file=None, seed=0):
    return SimpleNamespace(fraction=fraction, file=None if file is None else str(file), seed=seed)


def paths(subset, samples=SAMPLES):
    return {samples[index][0] for index in subset.indices}


def listed(tmp_path, *lines):
    file = tmp_path / "list.txt"
    file.write_text("\n".join(lines))
    return asked(file=file)


def test_all_images_are_a_subset_with_a_hash_of_its_members():
    subset = subset_of(SAMPLES, "/root", asked())
    assert (subset.name, subset.images, subset.total) == ("all", 48, 48)
    members = sorted(f"{path[6:]}\t{label}" for path, label in SAMPLES)
    assert subset.sha256 == hashlib.sha256("\n".join(members).encode()).hexdigest()
    assert subset.classes == {0: 40, 1: 7, 2: 1}


@pytest.mark.parametrize(
    "fraction, counts",
    [(0.1, {0: 4, 1: 1, 2: 1}), (0.5, {0: 20, 1: 4, 2: 1}), (1e-9, {0: 1, 1: 1, 2: 1})],
)
def test_a_fraction_is_that_of_every_class_and_at_least_one_image(fraction, counts):
    assert subset_of(SAMPLES, "/root", asked(fraction)).classes == counts


def test_a_draw_depends_on_names_and_seed_alone():
    first = subset_of(SAMPLES, "/root", asked(0.3))
    shuffled = random.Random(0).sample(SAMPLES, len(SAMPLES))
    elsewhere = [(path.replace("/root", "/mnt/b"), label) for path, label in shuffled]
    again = subset_of(elsewhere, "/mnt/b", asked(0.3))
    assert again.sha256 == first.sha256
    assert {path[7:] for path in paths(again, elsewhere)} == {path[6:] for path in paths(first)}
    other = subset_of(SAMPLES, "/root", asked(0.3, seed=1))
    assert other.sha256 != first.sha256 and other.classes == first.classes
    smaller = subset_of(SAMPLES, "/root", asked(0.1))
    assert paths(smaller) < paths(first)
    assert list(first.indices) == sorted(first.indices)


def test_another_label_is_another_subset():
    relabelled = [(path, 1 - label if label < 2 else label) for path, label in SAMPLES]
    same = subset_of(SAMPLES, "/root", asked()), subset_of(relabelled, "/root", asked())
    assert same[0].sha256 != same[1].sha256


def test_a_list_names_files_or_classes_and_files(tmp_path):
    wanted = listed(tmp_path, "cat_3.png", "", "  dog/dog_0.png ", "eel_0.png\r")
    subset = subset_of(SAMPLES, "/root", wanted)
    assert paths(subset) == {
        f"/root/{n}" for n in ("cat/cat_3.png", "dog/dog_0.png", "eel/eel_0.png")
    }
    assert subset.name == "the list list.txt" and subset.as_dict()["images_a_class"] == [1, 1]
    content = (tmp_path / "list.txt").read_bytes()
    assert subset.file_sha256 == hashlib.sha256(content).hexdigest()
    turned = listed(tmp_path, "eel_0.png", "dog_0.png", "cat_3.png")
    assert subset_of(SAMPLES, "/root", turned).sha256 == subset.sha256


@pytest.mark.parametrize(
    "lines, says",
    [
        (
            ["cat_1.png", "cow_1.png", "hen_1.png"],
            "names cow_1.png, which is none of the 49 images",
        ),
        (["cat/dog_1.png"], "names cat/dog_1.png, which is none"),
        (["at_1.png"], "names at_1.png, which is none"),
        (["cat_1.png", "cat/cat_1.png"], r"names cat/cat_1.png twice"),
        (["", " "], "names no image"),
        (
            ["dog_1.png"],
            r"name of 2 images .*\(dog/dog_1.png, cat/dog_1.png, …\); write class/file",
        ),
        (["cat_\x1b1.png"], "which is none of"),
    ],
)
def test_a_list_that_does_not_fit_earns_one_sentence(lines, says, tmp_path):
    samples = [*SAMPLES, ("/root/cat/dog_1.png", 0)]
    if lines == ["cat/dog_1.png"]:
        samples = [*SAMPLES, ("/root/cat/dog_2.png", 0)]
    with pytest.raises(UserError, match=says):
        subset_of(samples, "/root", listed(tmp_path, *lines))


def test_a_list_that_cannot_be_read(tmp_path):
    for file in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="labels.file=.* cannot be read"):
            subset_of(SAMPLES, "/root", asked(file=file))


def test_images_without_files_are_drawn_by_their_numbers():
    numbered = [(str(index), index % 3) for index in range(30)]
    subset = subset_of(numbered, "", asked(0.2))
    assert subset.classes == {0: 2, 1: 2, 2: 2}


def numbers(images, samples=SAMPLES, seed=0):
    indices = drawn(samples, "/root", images, seed, "data.train_images")
    return {samples[index][0] for index in indices}, Counter(samples[i][1] for i in indices)


@pytest.mark.parametrize(
    "images, classes",
    [(48, (40, 7, 1)), (24, (20, 3, 1)), (3, (1, 1, 1)), (10, (8, 1, 1)), (41, (34, 6, 1))],
)
def test_a_number_of_images_is_every_classs_share_and_one_at_least(images, classes):
    assert numbers(images)[1] == dict(enumerate(classes))


def test_a_number_is_drawn_by_names_and_seed_alone():
    first, _ = numbers(24)
    shuffled = random.Random(0).sample(SAMPLES, len(SAMPLES))
    assert first == numbers(24, shuffled)[0] != numbers(24, seed=1)[0]


@pytest.mark.parametrize("images, fits", [(2, 3), (49, 48)])
def test_a_number_that_does_not_fit_is_answered_with_one_that_does(images, fits):
    with pytest.raises(
        UserError, match=f"images={images} cannot be drawn.*give data.train_images={fits},"
    ):
        numbers(images)
