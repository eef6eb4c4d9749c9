"""IDX files as Fashion-MNIST's, small."""

import gzip
import struct

import numpy as np


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, zipped=False, train=20, test=10, side=28):
    """Images of noise, labels 0 to 9 in turn; the folder is made."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        for name, array in (
            ("images-idx3", dice.integers(0, 255, (count, side, side))),
            ("labels-idx1", np.arange(count) % 10),
        ):
            content = idx_bytes(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder
