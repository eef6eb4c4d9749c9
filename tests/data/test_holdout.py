"""The split of a search: every image on one side, the same ones whoever lists them."""

import json

import pytest

from carp_plugin.data.folders import data_name
from carp_plugin.data.holdout import hold_out, origin_of
from carp_plugin.errors import UserError
from tests.helpers import image_folder


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.glob("*/*")}


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images", per_class=8, classes=3) / "train"


def test_parts_are_disjoint_whole_and_balanced(images, tmp_path):
    train, val = hold_out(images, tmp_path / "split", fraction=0.25, seed=0)
    assert names(train) | names(val) == names(images) and not names(train) & names(val)
    assert {len(list(folder.iterdir())) for folder in val.iterdir()} == {2}
    assert {len(list(folder.iterdir())) for folder in train.iterdir()} == {6}
    for path in val.glob("*/*"):
        assert path.read_bytes() == (images / path.parent.name / path.name).read_bytes()


def test_seed_decides_and_other_images_do_not(images, tmp_path):
    _, first = hold_out(images, tmp_path / "first", fraction=0.25, seed=0)
    _, again = hold_out(images, tmp_path / "again", fraction=0.25, seed=0)
    _, other = hold_out(images, tmp_path / "other", fraction=0.25, seed=1)
    assert names(first) == names(again) != names(other)
    extra = images / "class_9"
    extra.mkdir()
    for i in range(4):
        (extra / f"{i}.png").write_bytes(b"")
    _, more = hold_out(images, tmp_path / "more", fraction=0.25, seed=0)
    assert {name for name in names(more) if "class_9" not in name} == names(first)


def test_a_split_that_stands_is_used_again(images, tmp_path):
    train, _ = hold_out(images, tmp_path / "split", fraction=0.5, seed=0)
    stamp = train.stat().st_mtime_ns
    assert hold_out(images, tmp_path / "split", fraction=0.5, seed=0)[0].stat().st_mtime_ns == stamp


@pytest.mark.parametrize("changed", [{"fraction": 0.25}, {"seed": 1}])
def test_another_split_in_its_place_is_not_overwritten(images, tmp_path, changed):
    hold_out(images, tmp_path / "split", fraction=0.5, seed=0)
    before = (tmp_path / "split" / "holdout.json").read_text()
    with pytest.raises(UserError, match="holds another split .* delete it, or choose another dir"):
        hold_out(images, tmp_path / "split", **{"fraction": 0.5, "seed": 0, **changed})
    assert (tmp_path / "split" / "holdout.json").read_text() == before


def test_images_added_since_are_noticed(images, tmp_path):
    hold_out(images, tmp_path / "split", fraction=0.5, seed=0)
    (images / "class_0" / "new.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds another split"):
        hold_out(images, tmp_path / "split", fraction=0.5, seed=0)


def test_both_sides_have_an_image_of_every_class(images, tmp_path):
    for fraction in (0.001, 0.999):
        train, val = hold_out(images, tmp_path / str(fraction), fraction=fraction, seed=0)
        for side in (train, val):
            assert all(any(folder.iterdir()) for folder in side.iterdir())


def test_a_class_of_one_image_cannot_be_split(images, tmp_path):
    for path in sorted((images / "class_1").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match="class_1 holds 1 image; holding some out needs two"):
        hold_out(images, tmp_path / "split", fraction=0.5, seed=0)
    assert not list(tmp_path.glob("split*"))


def test_manifest_says_where_it_is_from(images, tmp_path):
    hold_out(images, tmp_path / "split", fraction=0.5, seed=3)
    manifest = json.loads((tmp_path / "split" / "holdout.json").read_text())
    assert manifest["from"] == str(images.resolve()) and manifest["seed"] == 3


def test_a_data_set_is_called_after_its_folder_and_a_split_after_what_was_split(tmp_path):
    images = image_folder(tmp_path / "flowers", per_class=4)
    train, _ = hold_out(images / "train", tmp_path / "holdout", 0.5, 0)
    assert origin_of(train) == images / "train" and origin_of(images) == images
    assert (
        data_name("custom", str(train)) == data_name("custom", str(images / "train")) == "flowers"
    )
    assert data_name("custom", "/") == data_name("custom", None) == "custom"
    assert data_name("cifar10", "datasets/train") == "cifar10"
