"""SVMs on a made VOC 2007 of 40 images, whose precisions stand here by hand.

The network makes of an image of grey v (0 to 1) the unit row (cos v, sin v). Training images are black or almost white:
an SVM whose positives are black ranks by darkness, whatever its C, and one whose positives are white by brightness.
Test image i has grey 12 i, but 9 looks as 8 does.

**aeroplane**, positives black: the ranking is 0, 1, 2, …; 3 is "difficult" and left out. Positives: 0, 2, 4, 7, 10.

    image       0   1   2   4   5   6   7  8+9  10  11 … 19
    positive    +   -   +   +   -   -   +   -   +   -
    retrieved   1   2   3   4   5   6   7   9  10  …
    precision   1      2/3 3/4         4/7     1/2
    recall     1/5     2/5 3/5         4/5      1

    highest precision at recall >= t:   t = 0, .1, .2: 1;   .3, .4, .5, .6: 3/4;   .7, .8: 4/7;   .9, 1: 1/2
    11 points: (3 + 4 · 3/4 + 2 · 4/7 + 2 · 1/2) / 11 = (57/7) / 11 = 57/77
    area:      (1 + 2/3 + 3/4 + 4/7 + 1/2) / 5 = (293/84) / 5 = 293/420
    envelope:  (1 + 3/4 + 3/4 + 4/7 + 1/2) / 5 = (25/7) / 5 = 5/7

**bicycle**, positives white: the ranking is 19, 18, …; 15 is left out. Positives: 18, 17, 9; 9 and 8 stand at one
place, behind 19, 18, 17, 16, 14, 13, 12, 11, 10: there 11 are retrieved.

    precision   1/2 (18)   2/3 (17)   3/11 (9 and 8)
    recall      1/3        2/3        1

    highest precision:   t = 0, .1, …, .6: 2/3;   .7, .8, .9, 1: 3/11
    11 points: (7 · 2/3 + 4 · 3/11) / 11 = (190/33) / 11 = 190/363
    area:      (1/2 + 2/3 + 3/11) / 3 = (95/66) / 3 = 95/198
    envelope:  (2/3 + 2/3 + 3/11) / 3 = (53/33) / 3 = 53/99

**bird**, positives black, two training images left out; positives 0, 1, 2, the first three: 1 by every rule.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
from torchvision import transforms

from carp_plugin.evaluation.protocols.voc07 import measure
from carp_plugin.evaluation.shape import Images
from carp_plugin.settings.protocols import Voc07

BY_HAND = {
    "aeroplane": (Fraction(57, 77), Fraction(293, 420), Fraction(5, 7)),
    "bicycle": (Fraction(190, 363), Fraction(95, 198), Fraction(53, 99)),
    "bird": (Fraction(1), Fraction(1), Fraction(1)),
}
MARKS = {
    "aeroplane": (
        [1] * 10 + [-1] * 10,
        [1, -1, 1, 0, 1, -1, -1, 1, -1, -1, 1] + [-1] * 9,
    ),
    "bicycle": ([-1] * 10 + [1] * 10, [-1] * 9 + [1] + [-1] * 5 + [0, -1, 1, 1, -1]),
    "bird": ([1] * 8 + [0] * 2 + [-1] * 10, [1, 1, 1] + [-1] * 17),
}
GREYS = ([0] * 10 + [240] * 10, [12 * i for i in [*range(9), 8, *range(10, 20)]])
OBJECTS = {1: (0, 1), 0: (1, 1), -1: ()}  # mark -> whether each object is difficult


def tree(root: Path, lists: bool) -> Path:
    home = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    for number, part in enumerate(("trainval", "test")):
        names = [f"{100 * number + i:06d}" for i in range(20)]
        main = home / "ImageSets" / "Main"
        (main / f"{part}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            pixels = np.full((8, 8, 3), GREYS[number][i], dtype=np.uint8)
            Image.fromarray(pixels).save(home / "JPEGImages" / f"{name}.jpg", quality=95)
            objects = "".join(
                f"<object><name>{kind}</name><difficult>{difficult}</difficult></object>"
                for kind, marks in MARKS.items()
                for difficult in OBJECTS[marks[number][i]]
            )
            text = f"<annotation>{objects}</annotation>"
            (home / "Annotations" / f"{name}.xml").write_text(text)
        for kind, marks in MARKS.items() if lists else ():
            lines = (f"{name} {mark:2d}\n" for name, mark in zip(names, marks[number]))
            (main / f"{kind}_{part}.txt").write_text("".join(lines))
    return root


class Angle(nn.Module):
    """Grey v to (cos v, sin v)."""

    def forward(self, images):
        grey = images.mean(dim=(1, 2, 3))
        return torch.stack([grey.cos(), grey.sin()], dim=1)


class Constant(nn.Module):
    def forward(self, images):
        return torch.ones(len(images), 3)


def found_in(root, network, **settings):
    networks = {"student": (network, {"backbone": nn.Identity()})}
    images = Images(networks, {}, torch.device("cpu"), transforms.ToTensor())
    return measure(images, Voc07(root=str(root), shots=(), **settings))["student/backbone"]


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("strengths", [(0.5,), (0.01, 0.1, 1, 10, 100, 1000)])
def test_precisions_are_those_computed_by_hand(strengths, lists, tmp_path):
    result = found_in(tree(tmp_path, lists), Angle(), C=strengths)
    rules = {"mAP": "AP", "mAP, area": "AP_area", "mAP, envelope": "AP_envelope"}
    for number, (row, rule) in enumerate(rules.items()):
        for name, expected in BY_HAND.items():
            found = result.details["classes"][name][rule]
            assert found / 100 == pytest.approx(float(expected[number]), abs=1e-12), (name, rule)
        mean = sum(expected[number] for expected in BY_HAND.values()) / 3
        assert result.scores[row] / 100 == pytest.approx(float(mean), abs=1e-12)


def test_difficult_images_may_count_as_negatives(tmp_path):
    """As PCL does: aeroplane's image 3 stands before 4, 7 and 10, so their precisions are 3/5, 4/8 and 5/11."""
    result = found_in(tree(tmp_path, True), Angle(), C=(0.5,), difficult="negative")
    area = (1 + 2 / 3 + 3 / 5 + 4 / 8 + 5 / 11) / 5
    found = result.details["classes"]["aeroplane"]["AP_area"]
    assert found / 100 == pytest.approx(area, abs=1e-12)


def test_constant_features_rank_nothing(tmp_path):
    """A collapsed network: each class has the share of its positives among the images that count."""
    result = found_in(tree(tmp_path, True), Constant())
    shares = {"aeroplane": 5 / 19, "bicycle": 3 / 19, "bird": 3 / 20}
    for name, share in shares.items():
        for rule in ("AP", "AP_area", "AP_envelope"):
            found = result.details["classes"][name][rule]
            assert found == pytest.approx(100 * share, abs=1e-9)
