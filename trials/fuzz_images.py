"""Kinds of damaged and of unusual image files, made at random from a seed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Callable, Dict, NamedTuple

import numpy as np
from PIL import Image

Generator = np.random.Generator


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        make: random numbers -> bytes of a file.
        readable: True where it must be read, False where it must be refused, None where either is right: damage that
            happened to leave a well-formed file.
    """

    make: Callable[[Generator], bytes]
    readable: object


def picture(random: Generator, mode: str = "RGB") -> Image.Image:
    """A random image of 16 to 40 pixels a side."""
    height, width = random.integers(16, 41, 2)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(
        mode
    )


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _cut(kind: str) -> Callable[[Generator], bytes]:
    def make(random: Generator) -> bytes:
        data = encoded(picture(random), kind)
        return data[: int(random.integers(1, len(data) * 3 // 4))]

    return make


def _flipped(kind: str) -> Callable[[Generator], bytes]:
    def make(random: Generator) -> bytes:
        data = bytearray(encoded(picture(random), kind))
        for at in random.integers(0, len(data), int(random.integers(1, 20))):
            data[at] ^= int(random.integers(1, 256))
        return bytes(data)

    return make


def _zero_tail(random: Generator) -> bytes:
    data = encoded(picture(random), "JPEG")
    return data[: int(random.integers(len(data) // 2, len(data) - 50))].ljust(len(data), b"\0")


def _hole(random: Generator) -> bytes:
    data = bytearray(encoded(picture(random), "PNG"))
    at = int(random.integers(41, len(data) - 60))
    data[at : at + 32] = bytes(32)
    return bytes(data)


def _wrong_header(random: Generator) -> bytes:
    return random.bytes(8) + encoded(picture(random), "PNG")[8:]


def _bomb(random: Generator) -> bytes:
    side = int(random.integers(20_000, 60_000))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    length, crc = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
    # Pillow looks at the size when it comes to the pixels' chunk.
    return b"\x89PNG\r\n\x1a\n" + length + header + crc + struct.pack(">I", 9) + b"IDAT"


def _text(random: Generator) -> bytes:
    words = ("<html>", "404", "not found", "\n", "image", "ä")
    return " ".join(random.choice(words, 50)).encode()


def _16_bit(random: Generator) -> bytes:
    return encoded(Image.fromarray(random.integers(0, 2**16, (20, 24), dtype=np.uint16)), "PNG")


def _floats(low: float, high: float) -> Callable[[Generator], bytes]:
    def make(random: Generator) -> bytes:
        values = random.uniform(low, high, (20, 24)).astype(np.float32)
        return encoded(Image.fromarray(values), "TIFF")

    return make


def _of(mode: str, kind: str) -> Callable[[Generator], bytes]:
    return lambda random: encoded(picture(random, mode), kind)


#: Every kind by its name.
KINDS: Dict[str, Kind] = {
    "png cut off": Kind(_cut("PNG"), False),
    "jpeg cut off": Kind(_cut("JPEG"), False),
    "bmp cut off": Kind(_cut("BMP"), False),
    "webp cut off": Kind(_cut("WEBP"), False),
    "gif cut off": Kind(_cut("GIF"), None),
    "tiff cut off": Kind(_cut("TIFF"), False),
    "jpeg filled with zeros": Kind(_zero_tail, False),
    "png with a hole": Kind(_hole, False),
    "png with flipped bytes": Kind(_flipped("PNG"), None),
    "jpeg with flipped bytes": Kind(_flipped("JPEG"), None),
    "webp with flipped bytes": Kind(_flipped("WEBP"), None),
    "wrong header": Kind(_wrong_header, False),
    "random bytes": Kind(lambda random: random.bytes(int(random.integers(1, 4000))), False),
    "empty": Kind(lambda random: b"", False),
    "text": Kind(_text, False),
    "decompression bomb": Kind(_bomb, False),
    "floats without a white": Kind(_floats(-5, 5000), False),
    "16 bits": Kind(_16_bit, True),
    "floats from 0 to 1": Kind(_floats(0, 1), True),
    "jpeg with the name of a png": Kind(_of("RGB", "JPEG"), True),
    "cmyk jpeg": Kind(_of("CMYK", "JPEG"), True),
    "palette": Kind(_of("P", "PNG"), True),
    "greyscale": Kind(_of("L", "PNG"), True),
    "alpha": Kind(_of("RGBA", "PNG"), True),
    "one bit": Kind(_of("1", "PNG"), True),
    "one pixel": Kind(lambda random: encoded(picture(random).crop((0, 0, 1, 1)), "PNG"), True),
    "one row": Kind(lambda random: encoded(picture(random).resize((200, 1)), "PNG"), True),
}
