"""The revisited Oxford and Paris protocol against its definition written out, and on files that are wrong."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from carp_plugin.errors import UserError
from carp_plugin.evaluation.landmarks import Query
from carp_plugin.evaluation.protocols.landmarks import landmarks, measure
from carp_plugin.evaluation.shape import Images
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.protocols import Landmarks
from tests.evaluation.test_landmarks import truth
from tests.helpers import write_image

POSITIVE = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}
JUNK = {"easy": ["junk", "hard"], "medium": ["junk"], "hard": ["junk", "easy"]}


def made_queries(seed, n=60, count=9):
    generator = np.random.default_rng(seed)
    queries = []
    for number in range(count):
        kinds = generator.choice(4, n, p=[0.1, 0.1, 0.2, 0.6])
        if number == 0:
            kinds[kinds == 1] = 3  # nothing hard
        images = {
            kind: np.flatnonzero(kinds == i) for i, kind in enumerate(("easy", "hard", "junk"))
        }
        queries.append(Query(f"q{number}", (0, 0, 5, 5), images))
    return queries


def by_definition(database, features, queries):
    """mAP and mP@1, 5, 10 of each setup from ranked lists, junk taken out, trapezoids summed one by one."""
    cosines = F.normalize(features.double()) @ F.normalize(database.double()).T
    scores = {}
    for setup, positive in POSITIVE.items():
        ap, precisions = [], []
        for row, query in zip(cosines, queries):
            wanted = {i for kind in positive for i in query.images[kind].tolist()}
            junk = {i for kind in JUNK[setup] for i in query.images[kind].tolist()}
            ranked = [i for i in row.argsort(descending=True).tolist() if i not in junk]
            places = [place for place, i in enumerate(ranked) if i in wanted]
            if not places:
                continue
            area = 0.0
            for j, place in enumerate(places):
                before = 1.0 if place == 0 else j / place
                area += (before + (j + 1) / (place + 1)) / (2 * len(places))
            ap.append(area)
            ends = [min(places[-1] + 1, k) for k in (1, 5, 10)]
            precisions.append([sum(place < end for place in places) / end for end in ends])
        scores[f"mAP ({setup})"] = 100 * np.mean(ap)
        for k, column in zip((1, 5, 10), zip(*precisions)):
            scores[f"mP@{k} ({setup})"] = 100 * np.mean(column)
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_protocol_written_out(seed):
    generator = torch.Generator().manual_seed(seed)
    database, features = (
        torch.randn(60, 7, generator=generator),
        torch.randn(9, 7, generator=generator),
    )
    queries = made_queries(seed)
    found = landmarks(database, features, queries)
    assert next(iter(found.scores)) == "mAP (medium)"
    assert dict(found.scores) == pytest.approx(by_definition(database, features, queries), rel=1e-9)
    assert found.details["queries"] == {"medium": 9, "hard": 8, "easy": 9}
    assert len(found.per_image["mAP (hard)"]) == 8
    for name, values in found.per_image.items():
        assert found.scores[name] == pytest.approx(100 * values.mean())


def test_a_perfect_network_scores_all_and_a_collapsed_one_chance():
    queries = [
        Query(
            "q", (0, 0, 1, 1), {"easy": np.array([3]), "hard": np.array([4]), "junk": np.array([0])}
        )
    ]
    perfect = torch.eye(6)[:, :2].clone()
    perfect[[3, 4], 0] = 1.0
    perfect[[0, 1, 2, 5], 1] = 1.0
    perfect[[0, 1, 2, 5], 0] = 0.0
    found = landmarks(perfect, torch.tensor([[1.0, 0.0]]), queries)
    assert set(found.scores.values()) == {100.0}
    for order in (torch.arange(6), torch.arange(6).flip(0)):
        constant = landmarks(torch.ones(6, 3)[order], torch.ones(1, 3), queries)
        assert constant.scores["mP@1 (medium)"] == pytest.approx(40.0)  # two of five
        assert constant.scores["mP@1 (hard)"] == pytest.approx(25.0)
        # one positive at each of four places: (1 + 1)/2, (0 + 1/2)/2, (0 + 1/3)/2, (0 + 1/4)/2
        assert constant.scores["mAP (easy)"] == pytest.approx(100 * (1 + 1 / 4 + 1 / 6 + 1 / 8) / 4)


def test_a_setup_without_positives_is_left_out_and_said():
    none = np.array([], dtype=np.int64)
    queries = [Query("q", (0, 0, 1, 1), {"easy": np.array([1]), "hard": none, "junk": none})]
    found = landmarks(torch.eye(3), torch.eye(3)[:1], queries)
    assert "mAP (hard)" not in found.scores and found.details["queries"]["hard"] == 0
    assert found.remarks == ("no query has a positive in the setup hard.",)
    queries = [Query("q", (0, 0, 1, 1), {"easy": none, "hard": none, "junk": none})]
    with pytest.raises(UserError, match="no query of the ground truth has a positive"):
        landmarks(torch.eye(3), torch.eye(3)[:1], queries)


def test_features_that_are_not_finite_are_said():
    with pytest.raises(UserError, match="not finite"):
        landmarks(torch.full((60, 3), float("nan")), torch.ones(9, 3), made_queries(0))


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["a_0", "b_0", "c_0", "q_0", "q_1"]):
        write_image(tmp_path / "jpg" / f"{name}.jpg", number, size=24)
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth()))
    return tmp_path


def told(folder, **changes):
    given = {"ground_truth": str(folder / "gnd.pkl"), "images": str(folder / "jpg"), **changes}
    return Landmarks(**given)


def images_of(backbone=None):
    backbone = backbone or nn.Flatten()
    steps = [transforms.Resize(12), transforms.CenterCrop(12)]
    return Images(
        {"student": (backbone, {"backbone": nn.Identity()})},
        {},
        torch.device("cpu"),
        transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]),
    )


def test_files_become_scores(folder):
    images = images_of()
    found = measure(images, told(folder))["student/backbone"]
    assert images.passes == {"landmarks": 1, "landmarks, queries": 1}
    assert found.details["database"] == 3 and len(found.details["ground_truth_sha256"]) == 64
    with Image.open(folder / "jpg" / "q_0.jpg") as image:
        box = image.crop((2, 2, 9, 8))  # 1.5 is rounded to the even number
        wanted = F.normalize(images.transform(box).flatten()[None])
    assert torch.equal(images._known["landmarks, queries"]["student/backbone"].feats[:1], wanted)


class Pool(nn.Module):
    """Takes images of any shape, and notes which."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x.mean(dim=(2, 3))


def test_a_size_keeps_images_whole_and_parts_in_proportion(folder):
    Image.new("RGB", (30, 60)).save(folder / "jpg" / "a_0.jpg")
    backbone = Pool()
    measure(images_of(backbone), told(folder, size=12))
    assert backbone.shapes[0] == (1, 3, 12, 6)
    assert backbone.shapes[1:3] == [(1, 3, 12, 12)] * 2
    assert backbone.shapes[3] == (1, 3, 3, 4)  # 7 x 6 pixels of 24, halved
    big = Pool()
    measure(images_of(big), told(folder, size=500))
    assert big.shapes[1] == (1, 3, 24, 24)  # nothing is enlarged
    with pytest.raises(UserError, match="does not take images of any shape .*leave landmarks.size"):
        measure(images_of(nn.Sequential(nn.Flatten(), nn.Linear(5, 3))), told(folder, size=12))


def test_a_comparison_is_told_what_landmarks_need():
    given = {"name": "some", "protocols": ["landmarks"]}
    with pytest.raises(
        UserError, match=r"^protocols=\[landmarks\] needs landmarks.ground_truth=FILE"
    ):
        read_comparison({**given, "landmarks": {"images": "jpg"}})
    whole = {**given, "landmarks": {"images": "jpg", "ground_truth": "gnd.pkl"}}
    assert read_comparison(whole).comparison.landmarks.images == "jpg"


def test_what_is_missing_or_wrong_earns_one_sentence(folder):
    with pytest.raises(UserError, match="landmarks.images=.*nowhere is no folder"):
        measure(images_of(), told(folder, images=str(folder / "nowhere")))
    (folder / "jpg" / "b_0.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="b_0.jpg cannot be read"):
        measure(images_of(), told(folder))
    (folder / "jpg" / "b_0.jpg").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 5 images of the ground truth, b_0.jpg"):
        measure(images_of(), told(folder))
    write_image(folder / "jpg" / "b_0.jpg", 1, size=24)
    outside = truth()
    outside["gnd"][1]["bbx"] = [100, 100, 120, 120]
    (folder / "gnd.pkl").write_bytes(pickle.dumps(outside))
    with pytest.raises(UserError, match="q_1.jpg lies outside of its 24 x 24 pixels"):
        measure(images_of(), told(folder))
    with pytest.raises(UserError, match="give landmarks.ground_truth and landmarks.images"):
        measure(images_of(), Landmarks())
