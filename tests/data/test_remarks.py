"""Numbers that cannot be meant: images seen in training, an evaluation of crops, batches that leave many images out."""

import re
import shutil

import pytest
from PIL import Image

from carp_plugin.compare.statistics import doubts_of
from carp_plugin.data.listing import list_images
from carp_plugin.data.remarks import remarks_on, share_seen, shared_images
from carp_plugin.training.devices import Machine
from carp_plugin.training.plan import left_out, plan_of
from tests.helpers import image_folder, small_settings
from tests.settings.captured import settings_of, typed_in_bash


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def remarks(images, **changes):
    return remarks_on(small_settings(images, **changes).data)


def test_sound_data_earn_no_word(images):
    assert remarks(images) == []


def test_validation_images_among_the_training_images_are_named_whatever_their_names(images):
    shutil.copy(images / "train/class_0/0.png", images / "val/class_0/other.png")
    shutil.copy(images / "train/class_1/2.png", images / "val/class_1/2.png")
    (said,) = remarks(images)
    assert said.startswith("warning: 2 of 25 validation images are among the training images (")
    found, asked = shared_images(*(list_images(images / part, True) for part in ("train", "val")))
    pairs = {tuple(path.split("images/")[1] for path in pair) for pair in found.items()}
    assert asked == 25 and pairs == {
        ("val/class_0/other.png", "train/class_0/0.png"),
        ("val/class_1/2.png", "train/class_1/2.png"),
    }


def test_one_folder_for_both_is_named(images):
    (said,) = remarks(images, data__val_path=str(images / "train"))
    assert "24 of 24 validation images are among the training images" in said


def test_a_large_training_set_is_asked_by_names_alone(images, monkeypatch):
    shutil.copy(images / "train/class_0/0.png", images / "val/class_0/other.png")
    shutil.copy(images / "train/class_1/2.png", images / "val/class_1/2.png")
    (images / "train/class_0/0.png").rename(images / "train/class_0/zero.png")
    monkeypatch.setattr("carp_plugin.data.remarks._WHOLE", 23)
    assert "warning: 1 of 25 validation images" in remarks(images)[0]


@pytest.mark.parametrize(
    "image, resize, crop, share",
    [
        ((300, 300), None, 32, (32 / 300) ** 2),
        ((256, 512), None, 256, 0.5),
        ((1000, 500), 256, 224, 224**2 / (256 * 512)),
        ((20, 20), None, 32, 1.0),  # padded with black, of which the loaders warn
        ((500, 375), 256, 224, 224**2 / (256 * 256 * 500 / 375)),
    ],
)
def test_the_part_of_an_image_that_a_crop_shows(image, resize, crop, share):
    assert share_seen(image, resize, crop) == pytest.approx(share)


@pytest.mark.parametrize(
    "size, given, seen, then",
    [
        ((60, 60), {"crop_size": 20, "resize": None}, "11 %", "76 %"),
        ((30, 40), {"crop_size": 20, "resize": None}, "33 %", "57 %"),
        ((64, 36), {"crop_size": 16, "resize": 20}, "36 %", "56 %"),
        ((64, 36), None, "43 %", "56 %"),
    ],
)
def test_an_evaluation_that_sees_less_than_half_is_questioned(
    size, given, seen, then, images, tmp_path
):
    for path in (images / "val").rglob("*.png"):
        with Image.open(path) as image:
            image.resize(size).save(path)
    (said,) = remarks(images, data__eval_transform=given)
    assert f"sees {seen} of an image of {size[0]} x {size[1]} px" in said and f"see {then}." in said
    advice = said.partition("; with ")[2].partition(" it would")[0]
    line = f"--config-name carp.yaml {advice} data.train_path={images}/train data.val_path={images}/val"
    if given:
        line += f" data.eval_transform.crop_size={given['crop_size']}"
    assert remarks_on(settings_of(typed_in_bash(line, tmp_path)).data) == []


def test_an_image_too_wide_for_any_crop_is_to_be_cut(images):
    for path in (images / "val").rglob("*.png"):
        Image.new("RGB", (90, 30)).save(path)
    assert any("cut such images to nearly square ones" in said for said in remarks(images))


@pytest.mark.parametrize(
    "batch, world, said",
    [
        (8, 1, None),
        (13, 1, "an epoch takes 13 of the 24 images, .*; optimizer.batch_size=12 takes more"),
        (7, 2, "an epoch takes 14 of the 24 images, .*; optimizer.batch_size=6 takes more"),
        (10, 1, None),  # 20 of 24
    ],
)
def test_batches_that_leave_many_images_out_are_questioned(batch, world, said, images):
    settings = small_settings(images, optimizer__batch_size=batch)
    plan = plan_of(settings, Machine("cpu", tuple(range(world))), 24, 6)
    found = left_out(settings, plan)
    assert len(found) == (said is not None)
    if said:
        assert re.match(said, found[0])
    few = small_settings(images, optimizer__batch_size=batch, limit_train_batches=1)
    assert left_out(few, plan) == []


def test_a_comparison_says_each_doubt_of_its_runs_once():
    runs = [{"remarks": ["warning: a.", "left out: b."]}, {"remarks": ["warning: a."]}, {}]
    assert doubts_of(runs) == ["a."]


def test_a_doubt_of_some_runs_says_which():
    doubts = (["warning: a.", "warning: b."], ["warning: a."], ["warning: a.", "warning: b."])
    runs = [{"label": "carp", "seed": n, "remarks": said} for n, said in enumerate(doubts)]
    assert doubts_of(runs) == ["a.", "carp, seed 0; carp, seed 2: b."]
