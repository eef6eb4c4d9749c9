"""The default data set: what is promised about its tiles and about the folder they stand in."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from carp_plugin.data import photos
from carp_plugin.data.photos import PhotosError, prepare_photos
from tests.run_cli import ROOT

CLASSES = 15
GREY, COLOUR = "gravel", "coffee"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The data set, written once for the tests that only read it."""
    return prepare_photos(tmp_path_factory.mktemp("data") / "nested" / "photos")


@pytest.fixture
def two_classes(monkeypatch):
    """Shrinks the recipe to a grey and a colour photograph, for tests that write more than once."""
    both = {name: photos.PHOTOGRAPHS[name] for name in (GREY, COLOUR)}
    monkeypatch.setattr(photos, "PHOTOGRAPHS", both)
    monkeypatch.setattr(photos, "TRAIN_PER_CLASS", 4)
    monkeypatch.setattr(photos, "VAL_PER_CLASS", 2)
    tiles = {name: photos.split_tiles(name, photos.load_photograph(name)) for name in both}
    monkeypatch.setattr(photos, "PIXELS_SHA256", photos.pixels_digest(tiles))


def places(root, split, name):
    """(y, x) of the upper left pixel of every tile of a class, read from the file names."""
    return [
        tuple(int(part[1:]) for part in path.stem.split("_"))
        for path in sorted((root / split / name).iterdir())
    ]


def snapshot(folder):
    """Path -> (modification time in ns, bytes) of everything under a folder."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def test_no_pixel_is_in_two_tiles(root):
    for name in photos.PHOTOGRAPHS:
        uses = np.zeros(photos.load_photograph(name).shape[:2], dtype=int)
        for split in photos.SPLITS:
            for y, x in places(root, split, name):
                uses[y : y + photos.TILE, x : x + photos.TILE] += 1
        tiles = photos.TRAIN_PER_CLASS + photos.VAL_PER_CLASS
        assert uses.max() == 1, name
        assert uses.sum() == tiles * photos.TILE**2, name


def test_a_file_holds_the_pixels_its_name_says(root):
    for name in (GREY, COLOUR):
        photograph = photos.load_photograph(name)
        for split in photos.SPLITS:
            for path, (y, x) in zip(
                sorted((root / split / name).iterdir()), places(root, split, name)
            ):
                cut = photograph[y : y + photos.TILE, x : x + photos.TILE]
                np.testing.assert_array_equal(np.asarray(Image.open(path)), cut)


def test_every_class_has_the_same_number_of_tiles(root):
    counts = photos.count_tiles(root)
    assert len(counts) == CLASSES
    assert set(map(tuple, map(dict.items, counts.values()))) == {
        (("train", photos.TRAIN_PER_CLASS), ("val", photos.VAL_PER_CLASS))
    }


def test_standard_error_of_any_accuracy_is_under_one_and_a_half_points():
    assert 100 * np.sqrt(0.25 / (CLASSES * photos.VAL_PER_CLASS)) < 1.5


def test_the_pixels_are_those_of_the_published_accuracies(root):
    assert json.loads((root / photos.MANIFEST).read_text())["pixels_sha256"] == photos.PIXELS_SHA256


def test_tiles_without_content_are_left_out(root):
    for path in (root / "val" / "retina").iterdir():
        assert np.asarray(Image.open(path)).std(axis=(0, 1)).mean() >= photos.MIN_CONTRAST


def test_grey_and_colour_photographs_load_as_rgb(root):
    train = ImageFolder(root / "train")
    assert train.classes == ImageFolder(root / "val").classes == sorted(photos.PHOTOGRAPHS)
    modes = {}
    for name in (GREY, COLOUR):
        path, label = next(s for s in train.samples if s[1] == train.class_to_idx[name])
        with Image.open(path) as image:
            modes[name] = image.mode
        image, target = train[train.samples.index((path, label))]
        pixels = np.asarray(image)
        assert (image.mode, image.size, target) == ("RGB", (photos.TILE,) * 2, label)
        assert (pixels == pixels[..., :1]).all() == (name == GREY)
    assert modes == {GREY: "L", COLOUR: "RGB"}


def test_a_second_call_writes_nothing(root):
    before = snapshot(root.parent)
    assert prepare_photos(root) == root
    assert snapshot(root.parent) == before


def test_standing_tiles_need_no_photographs(root, monkeypatch):
    monkeypatch.setattr(photos, "load_photograph", None)
    assert prepare_photos(root) == root


def test_two_writings_are_equal(two_classes, tmp_path):
    first, second = (snapshot(prepare_photos(tmp_path / name)) for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert all(first[path][1] == second[path][1] for path in first)


def test_an_empty_folder_is_filled(two_classes, tmp_path):
    (tmp_path / "photos").mkdir()
    prepare_photos(tmp_path / "photos")
    assert photos.count_tiles(tmp_path / "photos")[GREY] == {"train": 4, "val": 2}


def test_other_pixels_than_the_published_ones_are_said(two_classes, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "PIXELS_SHA256", "0" * 64)
    with pytest.warns(UserWarning, match="differ from those that the published accuracies"):
        prepare_photos(tmp_path / "photos")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("saved", [0, 5])
def test_an_interrupted_writing_leaves_nothing(two_classes, tmp_path, monkeypatch, stop, saved):
    save, calls = Image.Image.save, []

    def interrupted(image, path):
        calls.append(path)
        if len(calls) > saved:
            raise stop
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(stop):
            prepare_photos(tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []
    prepare_photos(tmp_path / "photos")
    assert photos.count_tiles(tmp_path / "photos")[COLOUR] == {"train": 4, "val": 2}


def test_a_killed_writing_is_not_taken_for_whole(two_classes, tmp_path, monkeypatch):
    """What kill -9 leaves: no clean-up of the unfinished folder ever runs."""
    with monkeypatch.context() as patch:
        patch.setattr(photos, "_move_into_place", lambda unfinished, root: None)
        patch.setattr(photos.shutil, "rmtree", lambda *args, **kwargs: None)
        prepare_photos(tmp_path / "photos")
    assert not (tmp_path / "photos").exists()
    prepare_photos(tmp_path / "photos")
    assert photos.count_tiles(tmp_path / "photos")[COLOUR] == {"train": 4, "val": 2}


def test_the_second_of_two_writers_takes_what_the_first_wrote(two_classes, tmp_path, monkeypatch):
    move = photos._move_into_place

    def overtaken(unfinished, root):
        with monkeypatch.context() as patch:
            patch.setattr(photos, "_move_into_place", move)
            prepare_photos(root)
        standing = snapshot(root)
        move(unfinished, root)
        assert snapshot(root) == standing

    monkeypatch.setattr(photos, "_move_into_place", overtaken)
    assert prepare_photos(tmp_path / "photos") == tmp_path / "photos"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_two_processes_may_write_at_once(two_classes, tmp_path):
    """The same small recipe in two interpreters, both of which have to find the place empty."""
    code = f"""
import sys
from carp_plugin.data import photos

photos.PHOTOGRAPHS = {photos.PHOTOGRAPHS}
photos.TRAIN_PER_CLASS, photos.VAL_PER_CLASS = 4, 2
photos.PIXELS_SHA256 = {photos.PIXELS_SHA256!r}
move = photos._move_into_place

def move_when_told(unfinished, root):
    print("written", flush=True)
    sys.stdin.readline()
    move(unfinished, root)

photos._move_into_place = move_when_told
photos.prepare_photos({str(tmp_path / "photos")!r})
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["written\n"] * 2
    for process in both:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert prepare_photos(tmp_path / "photos") == tmp_path / "photos"


def put_foreign_image(root):
    (root / "train" / "cats").mkdir(parents=True)
    (root / "train" / "cats" / "mine.png").write_bytes(b"mine")


def put_foreign_manifest(root):
    root.mkdir()
    (root / photos.MANIFEST).write_text("[1, 2]")


def put_unreadable_manifest(root):
    root.mkdir()
    (root / photos.MANIFEST).write_text("{half")


def put_file(root):
    root.write_text("a file")


def put_older_recipe(root):
    prepare_photos(root)
    manifest = json.loads((root / photos.MANIFEST).read_text())
    (root / photos.MANIFEST).write_text(json.dumps({**manifest, "recipe": photos.RECIPE - 1}))


def lose_an_image(root):
    prepare_photos(root)
    next((root / "val" / GREY).iterdir()).unlink()


def add_an_image(root):
    prepare_photos(root)
    (root / "train" / GREY / "mine.png").write_bytes(b"mine")


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (put_foreign_image, "something else"),
        (put_foreign_manifest, "another recipe"),
        (put_unreadable_manifest, "something else"),
        (put_file, "something else"),
        (put_older_recipe, "another recipe"),
        (lose_an_image, "missing"),
        (add_an_image, "added"),
    ],
)
def test_anything_else_in_the_place_is_reported_and_left_alone(two_classes, tmp_path, put, message):
    put(tmp_path / "photos")
    before = snapshot(tmp_path)
    with pytest.raises(PhotosError, match=message) as caught:
        prepare_photos(tmp_path / "photos")
    assert "nothing was changed" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_place_that_cannot_be_written_is_one_sentence(two_classes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PhotosError, match="cannot write the default data set to .*photos: ") as e:
        prepare_photos(tmp_path / "file" / "photos")
    assert "\n" not in str(e.value)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(two_classes, tmp_path, monkeypatch):
    def full(image, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(PhotosError, match="No space left on device"):
        prepare_photos(tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("no_such_package", "a.png"), "not installed: pip install no_such_package"),
        (("skimage", "data/no_such_photograph.png"), "does not carry the photograph"),
        (("skimage", "data/README.txt"), "does not carry the photograph"),
    ],
)
def test_a_missing_photograph_is_one_sentence(tmp_path, monkeypatch, place, message):
    monkeypatch.setitem(photos.PHOTOGRAPHS, "astronaut", place)
    with pytest.raises(PhotosError, match=message):
        prepare_photos(tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


def test_a_photograph_that_is_too_small_says_so():
    with pytest.raises(PhotosError, match="brick of 64 x 64 pixels gives 4 tiles with content"):
        photos.split_tiles("brick", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))


def test_the_command_prints_the_counts_and_draws_tiles(root, tmp_path, capsys):
    assert photos.main([str(root), "--picture", str(tmp_path / "tiles.png")]) == 0
    printed = capsys.readouterr().out
    assert "coffee" in printed and "2,070" in printed and "1,125" in printed
    picture = np.asarray(Image.open(tmp_path / "tiles.png"))
    assert (picture != 255).mean() > 0.3


def test_the_command_says_in_one_sentence_what_is_wrong(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert photos.main([str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert photos.main([str(root), "--picture", str(tmp_path / "no" / "tiles.png")]) == 2
    assert "cannot write the picture" in capsys.readouterr().err
