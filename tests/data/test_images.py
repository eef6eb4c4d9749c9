"""Reading images: what is refused, what every kind looks like as RGB, and how a few bad files are done without."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.datasets.folder import ImageFolder, pil_loader

from carp_plugin.data import images as reading
from carp_plugin.data.epochs import EpochAugmented
from carp_plugin.data.images import (
    ImageError,
    NamesBadImages,
    fingerprint,
    read_image,
    verdict_of,
)
from carp_plugin.errors import UserError
from carp_plugin.host import DALI_AVAILABLE, prepare_datasets
from carp_plugin.training.pretraining import check_run
from tests.data.built import labelled_loaders, training_loader
from tests.helpers import augmentation, image_folder, small_settings, write_image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, rows):
    """A PNG written by hand, for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def with_bad_crc():
    data = bytearray(encoded("PNG"))
    at = data.index(b"IDAT") + 4
    data[at + 20] ^= 1
    return bytes(data)


def filled_with_zeros(thumbnail=False):
    """A download that stopped half way into a file that was as long as it should be from the start."""
    extra = {"exif": b"Exif\0\0" + encoded("JPEG")} if thumbnail else {}
    data = encoded("JPEG", **extra)
    return data[: len(data) * 3 // 4].ljust(len(data), b"\0")


BAD = {
    "empty": b"",
    "text": b"this is no image\n" * 20,
    "html": b"<!DOCTYPE html><html>404</html>",
    "jpeg cut off": encoded("JPEG")[:900],
    "jpeg without its end": encoded("JPEG")[:-2],
    "jpeg filled with zeros": filled_with_zeros(),
    "jpeg with a thumbnail filled with zeros": filled_with_zeros(thumbnail=True),
    "png cut off": encoded("PNG")[:900],
    "png with a bad checksum": with_bad_crc(),
    "png header only": encoded("PNG")[:33],
    "bmp cut off": encoded("BMP")[:900],
    "tiff cut off": encoded("TIFF")[:200],
    "webp cut off": encoded("WEBP")[:100],
    "gif cut off": encoded("GIF")[:300],
    "decompression bomb": png(40_000, 40_000, 8, 2, []),
    "no pixels": png(0, 0, 8, 2, []),
    "floats without a known white": encoded(
        "TIFF", Image.fromarray(np.float32([[0, 300.0], [-2, 1]]))
    ),
    "floats that are none": encoded("TIFF", Image.fromarray(np.float32([[0, np.nan]]))),
    "integers of 32 bits": encoded("TIFF", Image.fromarray(np.int32([[0, 70_000]]))),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some packages set it
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(
        ImageError, match=r"the image \S*bad.png cannot be read \(\S.*\)\.$"
    ) as error:
        read_image(path)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in {
        "folder.png": "it is not a file",
        "dangling.png": "no such file",
        "pipe.png": "it is not a file",
    }.items():
        with pytest.raises(ImageError, match=says):
            read_image(tmp_path / name)


def orientation(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", image, exif=exif)


def frames(kind):
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    return encoded(kind, first, save_all=True, append_images=[second])


RGB = Image.fromarray(PIXELS)
PALETTE = RGB.quantize(16)
EIGHT_BITS = {
    "rgb png": encoded("PNG"),
    "rgb jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "jpeg with something after it": encoded("JPEG") + b"motion photo" * 9,
    "webp": encoded("WEBP"),
    "greyscale": encoded("PNG", RGB.convert("L")),
    "greyscale with alpha": encoded("PNG", RGB.convert("LA")),
    "alpha": encoded("PNG", Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))),
    "one bit": encoded("PNG", RGB.convert("1")),
    "palette": encoded("PNG", PALETTE),
    "palette, one colour transparent": encoded("PNG", PALETTE, transparency=3),
    "palette, transparent by degrees": encoded("PNG", PALETTE, transparency=bytes(range(16))),
    "cmyk jpeg": encoded("JPEG", RGB.convert("CMYK")),
    "cmyk tiff": encoded("TIFF", RGB.convert("CMYK")),
    "rotated by exif": orientation(RGB),
    "animated gif": frames("GIF"),
    "animated webp": frames("WEBP"),
    "16-bit colour": png(
        48, 40, 16, 2, [(row.astype(">u2") * 257).tobytes() for row in PIXELS.astype(np.uint16)]
    ),
}


@pytest.mark.parametrize("content", EIGHT_BITS.values(), ids=EIGHT_BITS)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_eight_bits_are_what_the_host_reads(content, tmp_path):
    path = tmp_path / "image.png"  # whatever its content
    path.write_bytes(content)
    ours = read_image(path)
    assert ours.mode == "RGB" and ours.size == (48, 40)
    assert np.array_equal(np.asarray(ours), np.asarray(pil_loader(path)))


def test_the_first_frame_is_taken(tmp_path):
    path = tmp_path / "image.webp"
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    first.save(path, save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(np.asarray(read_image(path)), PIXELS)


GREY = PIXELS[..., 0]
DEEPER = {
    "16-bit png": ("PNG", Image.fromarray(GREY.astype(np.uint16) * 256 + 77)),
    "16-bit tiff": ("TIFF", Image.fromarray(GREY.astype(np.uint16) * 256 + 77)),
    "32-bit tiff of pixels": ("TIFF", Image.fromarray(GREY.astype(np.int32))),
    "floats from 0 to 255": ("TIFF", Image.fromarray(GREY.astype(np.float32))),
    "floats from 0 to 1": ("TIFF", Image.fromarray(GREY.astype(np.float32) / 255)),
}


@pytest.mark.parametrize("kind, image", DEEPER.values(), ids=DEEPER)
def test_more_bits_are_scaled_not_cut_off(kind, image, tmp_path):
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encoded(kind, image))
    assert np.array_equal(np.asarray(read_image(path)), np.stack([GREY] * 3, axis=-1))


def test_16_bit_grey_with_the_other_byte_order(tmp_path):
    values = GREY.astype(">u2") * 256
    path = tmp_path / "image.png"
    path.write_bytes(png(48, 40, 16, 0, [row.astype(">u2").tobytes() for row in values]))
    assert np.array_equal(np.asarray(read_image(path))[..., 0], GREY)


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def spoil(images, *names):
    for name in names:
        (images / "train" / name).write_bytes(b"torn")


def of(images, fraction, flat=False):
    """Pretraining's images, with their number as the only view."""
    root = images / "train"
    data = prepare_datasets(
        "custom", lambda image: [image.size[0]], train_data_path=root, no_labels=flat
    )
    return NamesBadImages(data, fraction)


def test_the_next_readable_image_stands_in_with_its_own_index_and_label(images, capsys):
    spoil(images, "class_0/3.png", "class_1/0.png", "class_5/3.png")
    named = of(images, 0.2)
    assert len(named) == 24
    items = [named[i] for i in range(24)]
    assert [item[0] for item in items] == [0, 1, 2, 5, 5, *range(5, 23), 0]
    assert items[3][2] == 1 and items[23][2] == 0
    assert items == [named[i] for i in range(24)]
    err = capsys.readouterr().err
    assert err.count("warning: the image") == 3 and "class_1/0.png" in err
    assert [path.split("train/")[1] for path in named.bad_images()] == [
        "class_0/3.png",
        "class_1/0.png",
        "class_5/3.png",
    ]
    assert named.verdict().startswith("3 of 24 images could not be read and were replaced by ot")


def test_one_too_many_is_an_error_that_says_how_to_allow_it(images):
    spoil(images, "class_0/0.png", "class_2/0.png", "class_3/0.png")
    named = of(images, 2 / 24)
    named[0], named[8]
    says = r"class_3/0.png cannot be read .*; with it 3 are bad: \S+class_0/0.png, .* allows 2 .*"
    with pytest.raises(ImageError, match=says + r" data.max_bad_fraction=0.125\.$"):
        named[12]
    allowing = of(images, 0.125)
    assert [allowing[i][0] for i in (0, 8, 12)] == [1, 9, 13] and len(allowing.bad_images()) == 3


def test_none_is_allowed_where_the_fraction_is_less_than_one_image(images):
    spoil(images, "class_0/0.png")
    with pytest.raises(ImageError, match=r"of 24 images data.max_bad_fraction=0.01 allows 0"):
        of(images, 0.01)[0]


def test_a_folder_of_nothing_but_damage_ends(images):
    for path in (images / "train").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="allows 12"):
        of(images, 0.5)[0]


def batches(images, workers):
    changes = {"data__max_bad_fraction": 0.1, "data__num_workers": workers}
    loader = training_loader(small_settings(images, **changes))
    # whichever order the loader has, the transform is that of the index alone
    named = loader.dataset
    while not isinstance(named, NamesBadImages):
        named = named.dataset
    served = torch.utils.data.DataLoader(
        EpochAugmented(named, seed=0),
        batch_size=8,
        sampler=[(0, i) for i in range(24)],
        num_workers=workers,
    )
    return list(served), verdict_of(served)


def test_workers_agree_on_what_stands_in_and_report_it(images):
    spoil(images, "class_0/3.png", "class_4/0.png")
    (alone, said), (by_two, said_by_two) = batches(images, 0), batches(images, 2)
    assert len(alone) == len(by_two) == 3
    for one, other in zip(alone, by_two):
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1]))
    assert said == said_by_two and said.startswith("2 of 24 images could not be read")


def test_verdict_where_all_is_well_or_nothing_is_known(images):
    assert of(images, 0.5).verdict() is None
    assert verdict_of(torch.utils.data.DataLoader(of(images, 0))) is None and verdict_of([]) is None


def test_the_bank_does_without_a_bad_image_and_validation_does_not(images):
    spoil(images, "class_0/3.png")
    settings = small_settings(images, data__max_bad_fraction=0.1)
    train, val = labelled_loaders(settings)
    assert torch.cat([labels for _, labels in train]).tolist()[:4] == [0, 0, 0, 1]
    assert len(list(val)) == 3
    (images / "val/class_2/1.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"val/class_2/1.png cannot be read .*take it out"):
        list(labelled_loaders(settings)[1])


def test_a_flat_folder_leaves_out_what_is_no_image_by_its_name(images, tmp_path):
    flat = tmp_path / "flat"
    for i in range(9):
        write_image(flat / f"{8 - i}.png", seed=i)
    for name in (".DS_Store", "notes.txt"):
        (flat / name).write_bytes(b"")
    (flat / "4.png").write_bytes(b"")
    changes = {"data__train_path": str(flat), "data__no_labels": True, "data__val_path": None}
    settings = small_settings(images, **changes, data__max_bad_fraction=0.2)
    (indexes, _, labels), *_ = list(training_loader(settings))
    assert len(indexes) == 8 and 4 not in indexes.tolist() and set(labels.tolist()) == {-1}


@pytest.mark.parametrize("value", [-0.1, 0.6, "all", True])
def test_a_fraction_that_is_none_is_refused(value, images):
    with pytest.raises(UserError, match="data.max_bad_fraction must be a number between 0 and 0.5"):
        small_settings(images, data__max_bad_fraction=value)


def test_small_images_are_warned_about_once_each(images, capsys):
    settings = small_settings(images)
    training_loader(settings), labelled_loaders(settings)
    assert "warning" not in capsys.readouterr().out
    training_loader(small_settings(images, augmentations=[augmentation(size=32)]))
    said = capsys.readouterr().out
    assert "24 of 24 sampled images" in said and "enlarged to views of 32 px" in said
    crop = {"data__eval_transform__crop_size": 24}
    train, _ = labelled_loaders(small_settings(images, **crop))
    assert capsys.readouterr().out.count("central crop of 24 px pads them with black") == 2
    first = next(iter(train))[0]
    assert first[0, :, 0, 0].max() < 0 and first.shape[-2:] == (24, 24)
    labelled_loaders(small_settings(images, **crop, data__eval_transform__resize=24))
    assert "warning" not in capsys.readouterr().out


def test_views_of_several_shapes_are_refused_before_training(images):
    write_image(images / "train/class_0/wide.png", seed=0)
    Image.new("RGB", (40, 20)).save(images / "train/class_0/wide.png")
    training_loader(small_settings(images))
    view = augmentation()
    view["rrc"]["enabled"] = False
    settings = small_settings(images, augmentations=[view])
    with pytest.raises(UserError, match=r"rrc.enabled=False .*40 x 20 and 20 x 20"):
        training_loader(settings)


FOLDERS = {
    "other format": ("cats/a.xcf", b"", r"no image of the class cats but a.xcf; .*\.webp"),
    "empty class": ("cats/.keep", b"", r"no image of the class cats; put images"),
}


@pytest.mark.parametrize("name, content, says", FOLDERS.values(), ids=FOLDERS)
def test_folders_that_are_no_classes(name, content, says, images):
    path = images / "train" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"data.train_path=\S+ holds {says}"):
        check_run(small_settings(images))


def test_a_flat_folder_without_images(images, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.npy").write_bytes(b"")
    changes = {"data__train_path": str(tmp_path / "flat"), "data__no_labels": True}
    with pytest.raises(UserError, match=r"holds no image but a.npy"):
        check_run(small_settings(images, **changes))


@pytest.mark.skipif(not DALI_AVAILABLE, reason="NVIDIA DALI is not installed (extra: dali)")
def test_dali_says_which_image_it_likely_was(images):
    from carp_plugin.commands.pretrain import pretrain

    path = images / "train/class_2/1.png"
    path.write_bytes(path.read_bytes()[:200])
    dali = {"device": "cpu", "encode_indexes_into_labels": False}
    settings = {"data__format": "dali", "data__num_workers": 1, "data__val_path": None}
    with pytest.raises(ImageError, match=r"DALI cannot decode .*likely \S+class_2/1.png .*image_f"):
        pretrain(small_settings(images, dali=dali, **settings))


def test_a_fingerprint_tells_names_and_sizes_and_bears_a_link_to_nowhere(tmp_path):
    def of(*names):
        return fingerprint([str(tmp_path / name) for name in names], str(tmp_path))

    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert len({of("a"), of("b"), of("a", "b"), of("b", "a"), of("a", "gone")}) == 5
    before = of("a")
    (tmp_path / "a").write_bytes(b"12")
    assert of("a") != before


def image_set(folder):
    """An ImageFolder of three images in one class."""
    for i in range(3):
        write_image(folder / "a" / f"{i}.png", seed=i)
    return ImageFolder(str(folder), transform=lambda image: image.size)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EMFILE, errno.EIO])
def test_a_passing_fault_of_the_file_system_is_waited_for(code, tmp_path, monkeypatch):
    """Another image in its place would stay for ever, and bit-equality be gone."""
    faults, read, pauses = [code, code], reading._read_once, []

    def once(path, max_pixels):
        if path.endswith("1.png") and faults:
            raise OSError(faults.pop(), "not now")
        return read(path, max_pixels)

    monkeypatch.setattr(reading, "_read_once", once)
    monkeypatch.setattr(reading.time, "sleep", pauses.append)
    named = NamesBadImages(image_set(tmp_path), max_bad_fraction=0.5)
    assert named[1] == ((20, 20), 0) and pauses == [0.1, 0.5] and not named.bad_images()


def test_a_fault_that_does_not_pass_ends_as_what_it_is(tmp_path, monkeypatch):
    def stale(path, *_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    named = NamesBadImages(image_set(tmp_path), max_bad_fraction=0.5)
    monkeypatch.setattr(reading.os, "stat", stale)
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    with pytest.raises(
        UserError, match=r"0.png could not be read in 4 tries \(Stale file handle\)"
    ) as caught:
        named[0]
    assert not isinstance(caught.value, ImageError)
    assert not named.bad_images()


def test_a_large_image_has_a_way_in_and_nobody_warns(tmp_path, recwarn):
    data = image_set(tmp_path)
    Image.new("L", (14_000, 13_500)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ImageError, match=r"189,000,000 pixels are more than data.max_pixels=17895"):
        NamesBadImages(data)[1]
    taken = NamesBadImages(data, max_pixels=189_000_000)
    Image.new("L", (10_000, 9_000)).save(tmp_path / "a" / "2.png")
    assert taken[2][0] == (10_000, 9_000) and NamesBadImages(data)[2][0] == (10_000, 9_000)
    assert not [w for w in recwarn if "Decompression" in str(w.category)]
