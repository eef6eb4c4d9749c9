"""VOC07: average precisions by hand, the SVM and its C, few images, and the whole protocol on a made tree.

By hand, for the cats of the 20 test images of ``made_voc.py``. Positive are images 0, 2, 5, 11; images 3 and 7 show
only difficult cats and are left out. A detector gives image i the score 20 - i, so that the ranking of the 18 others is

    rank       1    2    3    4    5    6    7    8    9    10   …
    image      0    1    2    4    5    6    8    9    10   11   12 …
    cat        x         x         x                        x
    precision  1/1  1/2  2/3  2/4  3/5  3/6  3/7  3/8  3/9  4/10
    recall     1/4  1/4  2/4  2/4  3/4  3/4  3/4  3/4  3/4  4/4

Best precision at a recall of at least 0, 0.1, 0.2: 1; of 0.3, 0.4, 0.5: 2/3; of 0.6, 0.7: 3/5; of 0.8, 0.9, 1: 2/5.
The 11 points: (3 * 1 + 3 * 2/3 + 2 * 3/5 + 3 * 2/5) / 11 = 7.4 / 11. The area: (1 + 2/3 + 3/5 + 2/5) / 4 = 2/3.
"""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torchvision.transforms.functional import to_tensor

from carp_plugin.data.voc import CLASSES, voc_split
from carp_plugin.errors import UserError
from carp_plugin.evaluation.protocols.voc07 import average_precisions, measure, voc07
from carp_plugin.evaluation.shape import Images
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Voc07
from tests.evaluation.protocols.made_voc import voc_tree


def test_average_precisions_are_those_by_hand(tmp_path):
    labels = voc_split(str(voc_tree(tmp_path)), "test").labels[:, CLASSES.index("cat")]
    eleven, area, envelope = average_precisions(20.0 - np.arange(20), labels)
    assert eleven == pytest.approx(7.4 / 11, abs=1e-12)
    assert area == envelope == pytest.approx(2 / 3, abs=1e-12)


def test_the_area_is_scikit_learns_and_equal_scores_enter_together():
    dice = np.random.default_rng(0)
    for _ in range(20):
        scores = dice.integers(0, 6, 40).astype(float)
        labels = dice.choice([1, -1, 0], 40)
        eleven, area, envelope = average_precisions(scores, labels)
        counted = labels != 0
        theirs = average_precision_score(labels[counted] == 1, scores[counted])
        assert area == pytest.approx(theirs, abs=1e-12)
        order = dice.permutation(40)
        assert average_precisions(scores[order], labels[order]) == (eleven, area, envelope)
    same = average_precisions(np.ones(10), np.array([1, 1, -1, -1, -1, 1, -1, -1, -1, 0]))
    assert same == pytest.approx((3 / 9, 3 / 9, 3 / 9))


def made(seed, n, spread, classes=4, dim=8):
    """Images of one or two classes, whose features are the sum of the classes' directions and noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.arange(n) % classes
    second = torch.randint(0, classes, (n,), generator=generator)
    labels = torch.full((n, classes), -1, dtype=torch.int8)
    labels[torch.arange(n), first] = 1
    labels[torch.arange(n), second] = 1
    labels[::17, 0] = 0
    feats = (labels == 1).float() @ torch.eye(classes, dim)
    feats += spread * torch.randn(n, dim, generator=generator)
    return Features(F.normalize(feats), labels)


def test_separable_classes_score_a_hundred_and_random_ones_chance():
    train, test = made(0, 120, 0.01), made(1, 80, 0.01)
    found = voc07(train, test, [1.0], shots=[1, 8], draws=3)
    assert found.scores["mAP"] == found.scores["mAP, area"] == 100
    assert found.scores["mAP, 1 a class"] <= found.scores["mAP, 8 a class"]
    assert len(found.details["low_shot"]["shots"]["8"]["draws"]) == 3
    noise = Features(F.normalize(torch.randn(400, 8)), made(0, 400, 1).targets)
    prevalence = 100 * float((noise.targets == 1).float().mean())
    assert abs(voc07(train, noise, [1.0]).scores["mAP, area"] - prevalence) < 12


def test_C_is_chosen_in_training_images_by_class():
    train, test = made(0, 90, 0.6), made(1, 60, 0.6)
    found = voc07(train, test, [1e-4, 1.0])
    flipped = voc07(train, Features(test.feats, -test.targets), [1e-4, 1.0])
    chosen = [one["C"] for one in found.details["classes"].values()]
    assert chosen == [one["C"] for one in flipped.details["classes"].values()]
    assert set(chosen) <= {1e-4, 1.0} and "3-fold" in found.details["C_chosen_by"]
    assert voc07(train, test, [0.5]).details["C_chosen_by"] == "the user"


@pytest.mark.parametrize("case", ["unseen in test", "unseen in training", "one image", "constant"])
def test_hardly_any_data_give_the_true_number_and_a_sentence(case):
    train, test = made(0, 60, 0.3), made(1, 60, 0.3)
    if case == "unseen in test":
        test.targets[:, 2] = -1
    if case == "unseen in training":
        train.targets[:, 2] = -1
    if case == "one image":
        train = Features(train.feats[:4], train.targets[:4])
    if case == "constant":
        train, test = (Features(torch.full_like(f, 0.5), t) for f, t in (train, test))
    found = voc07(train, test, [0.1, 1.0], shots=[2], draws=2)
    assert all(0 <= score <= 100 for score in found.scores.values())  # nan is not
    third = found.details["classes"]["2"]
    if case == "unseen in test":
        assert third["AP"] is None and "no test image shows 2" in found.remarks[0]
        known = [one["AP"] for one in found.details["classes"].values() if one["AP"] is not None]
        assert found.scores["mAP"] == pytest.approx(np.mean(known))
    if case == "unseen in training":
        share = float((test.targets[:, 2] == 1).float().mean())
        assert third["AP"] == pytest.approx(100 * share) and "do not tell 2" in found.remarks[0]
    if case == "constant":
        counted = [
            (test.targets[:, c] == 1).sum() / (test.targets[:, c] != 0).sum() for c in range(4)
        ]
        assert found.scores["mAP"] == pytest.approx(100 * float(np.mean(counted)), abs=1e-4)


def made_images():
    networks = {"student": (nn.Flatten(), {"backbone": nn.Identity()})}
    return Images(networks, {}, torch.device("cpu"), transform=to_tensor, batch_size=7)


def test_the_whole_protocol_on_a_tree(tmp_path):
    images = made_images()
    found = measure(images, Voc07(root=str(voc_tree(tmp_path)), C=(1.0,), shots=(1,), draws=2))
    result = found["student/backbone"]
    assert images.passes == {"voc07/trainval": 1, "voc07/test": 1}
    assert list(result.scores) == ["mAP", "mAP, area", "mAP, envelope", "mAP, 1 a class"]
    assert list(result.details["classes"]) == list(CLASSES)
    assert (result.details["train_images"], result.details["test_images"]) == (20, 20)
    averages = [one["AP"] for one in result.details["classes"].values()]
    assert result.scores["mAP"] == pytest.approx(np.mean(averages))


def test_without_its_folder_it_is_refused():
    with pytest.raises(UserError, match="voc07.root"):
        measure(made_images(), Voc07())
