"""Images held out: every image on one side, the same ones whoever lists them."""

from types import SimpleNamespace

import pytest

from carp_plugin.data.holdout import hold_out
from carp_plugin.errors import UserError

SAMPLES = [(f"/root/class_{label}/{i}.png", label) for label in range(3) for i in range(8)]


def split(samples=SAMPLES, fraction=0.25, seed=0, root="/root"):
    """Names to train on and to validate on."""
    parts = hold_out(samples, root, SimpleNamespace(fraction=fraction, seed=seed))
    return tuple([samples[index][0] for index in part] for part in parts)


def test_parts_are_disjoint_whole_balanced_and_in_order():
    train, val = split()
    assert sorted(train + val) == [path for path, _ in SAMPLES]
    assert (train, val) == (sorted(train), sorted(val))
    for label in range(3):
        assert sum(f"class_{label}" in path for path in val) == 2


def test_seed_decides_and_other_images_place_and_order_do_not():
    _, first = split()
    assert first == split()[1] != split(seed=1)[1]
    more = [*SAMPLES, *((f"/root/class_9/{i}.png", 9) for i in range(4))]
    assert [path for path in split(more)[1] if "class_9" not in path] == first
    moved = [(path.replace("/root", "/elsewhere"), label) for path, label in reversed(SAMPLES)]
    _, there = split(moved, root="/elsewhere")
    assert sorted(path.replace("/elsewhere", "/root") for path in there) == first


def test_the_split_is_that_of_the_recorded_search():
    """The names decide as they did when a search made folders of links, whose results are published."""
    assert split()[1] == [
        f"/root/class_{label}/{i}.png" for label, pair in enumerate(HELD) for i in pair
    ]


#: Of each class, by `hold_out` of commit ebfa357 on folders of these names.
HELD = ((5, 7), (0, 4), (3, 5))


def test_both_sides_have_an_image_of_every_class():
    for fraction in (0.001, 0.999):
        for side in split(fraction=fraction):
            assert {path.split("/")[2] for path in side} == {"class_0", "class_1", "class_2"}


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(UserError, match="class of /root/class_1/0.png holds 1 image; .* needs two"):
        split([sample for sample in SAMPLES if "class_1" not in sample[0]] + [SAMPLES[8]])
