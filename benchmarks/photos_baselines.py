"""k-NN accuracy on the embedded photographs without a network: what learned features have to beat.

python benchmarks/photos_baselines.py
"""

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from carp_plugin.data.photos import DEFAULT_ROOT, prepare_photos
from carp_plugin.evaluation.features import Features, knn_accuracy


def tiles(folder: Path) -> Features:
    """The tiles as rows of pixels in [0, 1]: (N, 3 * 32 * 32)."""
    loader = DataLoader(ImageFolder(folder, transforms.ToTensor()), batch_size=512)
    images, targets = zip(*loader)
    return Features(torch.cat(images).flatten(1), torch.cat(targets))


def colours(pixels: Features) -> Features:
    """Mean and standard deviation of the three channels: (N, 6)."""
    channels = pixels.feats.view(len(pixels.feats), 3, -1)
    return Features(torch.cat([channels.mean(2), channels.std(2)], dim=1), pixels.targets)


def standardized(train: Features, val: Features) -> tuple:
    """Both sets with the training set's mean and scale taken out of every feature."""
    mean, std = train.feats.mean(0), train.feats.std(0).clamp_min(1e-6)
    return tuple(Features((f.feats - mean) / std, f.targets) for f in (train, val))


def main() -> None:
    """Prints a table and the same as a line of json."""
    root = prepare_photos(DEFAULT_ROOT)
    train, val = tiles(root / "train"), tiles(root / "val")
    results = {
        "raw pixels": knn_accuracy(*standardized(train, val))[0],
        "mean and deviation of colour": knn_accuracy(*standardized(colours(train), colours(val)))[
            0
        ],
    }
    for name, accuracy in results.items():
        print(f"{name:30s} {accuracy:6.2f} %")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
