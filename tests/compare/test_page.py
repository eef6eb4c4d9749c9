"""The page of a comparison: whole, self-contained, escaped, and complete whatever is missing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from carp_plugin.compare.page import write_page
from carp_plugin.compare.search import chosen
from carp_plugin.compare.statistics import summarise
from carp_plugin.errors import UserError
from tests.compare.made import made_results

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Checks nesting and collects ids, links, tags and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def written(results, folder):
    """The page, read; what holds for every page is checked on the way."""
    path = write_page(results, folder)
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    for tag, attributes in reader.tags:
        assert tag not in ("script", "iframe", "object"), tag
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            if key in attributes:
                assert re.match("data:|#|results.json$", attributes[key]), attributes[key]
        if tag == "img":
            assert attributes["alt"]
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in reader.ids
    assert not re.search(r"@import|url\((?!#)", text)
    assert sorted(p.name for p in folder.iterdir() if "index" in p.name) == ["index.html"]
    return reader


def headings(reader):
    return [attributes["id"] for tag, attributes in reader.tags if tag == "section"]


def images(folder, name="gallery.npz"):
    """A saved gallery of two prototypes and two images."""
    for i in range(2):
        Image.new("RGB", (8, 8), (i * 200, 20, 20)).save(folder / f"{i}.png")
    files = np.array([[str(folder / f"{i}.png") for i in range(2)]] * 2)
    np.savez_compressed(
        folder / name,
        prototypes=[7, 3],
        counts=[2, 1],
        purity=[0.5, 1.0],
        majority=[0, 1],
        tiles=[[0, 1], [1, 0]],
        similarities=[[0.9, 0.8], [0.7, 0.1]],
        labels=[[0, 1], [1, 0]],
        members=[[True, True], [True, False]],
        files=files,
    )
    return name


def test_page_of_a_whole_comparison(tmp_path):
    results, _ = made_results(failed=[("swav", 1)], collapsed=[("byol", 2)])
    results["runs"][0]["gallery"] = images(tmp_path)
    page = written(results, tmp_path)
    sections = ["compared", "results", "curves", "terms", "gallery", "troubled", "provenance"]
    assert headings(page) == [*sections, "reproduce"]
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 4 + 2 + 3 + 2 + 1 + 1 and tags.count("img") == 2
    assert tags.count("details") == len(results["runs"]) + 1
    for words in (
        "2070 in datasets/photos/train",
        "k = 20, temperature 0.07, cosine",
        "solo-learn 1.0.2",
        results["commit"],
        results["command"],
        "54.33 ± 1.18",
        "Higher is better",
        "prototype 7: 2 images, purity 50 %",
        "swav, seed 1 failed: the loss was nan at step 12.",
        "backbone: name: resnet18",
        "11 of 12 runs",
    ):
        assert words in page.text, words


def test_same_results_give_the_same_bytes_read_from_json_or_not(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0, 1), epochs=2)
    page = write_page(results, tmp_path / "a").read_bytes()
    assert write_page(json.loads(json.dumps(results)), tmp_path / "b").read_bytes() == page


ALL_FAILED = {
    "methods": ("carp", "byol"),
    "failed": [(m, s) for m in ("carp", "byol") for s in (0, 1)],
}


@pytest.mark.parametrize(
    "settings, metrics, absent",
    [
        ({"seeds": (0,), "methods": ("carp", "byol")}, 4, ["troubled", "gallery"]),
        ({"methods": ("carp",)}, 4, ["troubled"]),
        ({**ALL_FAILED, "seeds": (0, 1)}, None, ["curves", "terms", "gallery"]),
        ({"methods": ("swav", "barlow_twins")}, 2, ["gallery"]),
        ({"linear": False, "methods": ("carp", "swav")}, 2, ["gallery"]),
    ],
    ids=["one seed", "one method", "all failed", "no teacher", "no linear"],
)
def test_whatever_is_missing_the_page_stands(settings, metrics, absent, tmp_path):
    page = written(made_results(**settings, epochs=2)[0], tmp_path)
    found = headings(page)
    assert {"compared", "results", "provenance", "reproduce"} <= set(found)
    assert not set(absent) & set(found)
    columns = [tag for tag, attributes in page.tags if attributes.get("scope") == "col"]
    if metrics is None:
        assert not columns and "nothing to compare" in page.text and "0 of 4 runs" in page.text
    else:
        assert len(columns) == 2 + metrics + 3


def test_results_with_little_more_than_runs(tmp_path):
    results, _ = made_results(("carp",), seeds=(0,), epochs=2)
    run = {
        key: results["runs"][0][key] for key in ("method", "label", "seed", "status", "accuracy")
    }
    bare = {
        "runs": [run, {"label": "x", "method": "x", "seed": 0, "status": "failed", "why": None}]
    }
    bare["summary"] = summarise(bare["runs"], lambda run: {}, draws=10)
    page = written(bare, tmp_path)
    assert "no reason was given" in page.text and "commit" not in page.text


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\"'"


def test_everything_is_escaped(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0,), failed=[("byol", 0)])
    results.update(name=HOSTILE, command=HOSTILE, date=HOSTILE, commit=HOSTILE)
    results["host"] = results["machine"] = results["versions"] = {HOSTILE: HOSTILE}
    results["data"].update(train_path=HOSTILE)
    results["protocol"]["linear"] = {HOSTILE: {HOSTILE: HOSTILE}}
    for run in results["runs"]:
        run.update(label=HOSTILE + run["label"], why=HOSTILE, config={HOSTILE: HOSTILE})
        for entry in run["curves"]:
            entry[f"train_{HOSTILE}"] = 1.0
    results["runs"][0]["gallery"] = HOSTILE
    results["summary"] = summarise(results["runs"], lambda run: {}, reference=HOSTILE, draws=10)
    page = written(results, tmp_path)  # checks tags and attributes
    assert page.text.count("<script>alert('x')</script>") >= 10


def test_very_long_names_do_not_make_long_pictures(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0, 1))
    for run in results["runs"]:
        run["label"] = run["label"] * 100
    results["summary"] = summarise(results["runs"], lambda run: {}, reference="carp", draws=10)
    assert "carp" * 100 in written(results, tmp_path).text


def test_a_gallery_that_cannot_be_read_is_said_and_the_page_stands(tmp_path):
    results, _ = made_results(("carp",), seeds=(0,), epochs=2, linear=False)
    results["runs"][0]["gallery"] = "runs/nowhere.npz"
    assert "Not shown: the gallery" in written(results, tmp_path).text
    results["runs"][0]["gallery"] = images(tmp_path)
    (tmp_path / "1.png").unlink()
    assert "1.png of the gallery cannot be read (it is missing)" in written(results, tmp_path).text


def test_runs_of_different_budgets_are_told(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0,))
    results["runs"][1]["steps"] = 77
    assert "192 or 77 steps" in written(results, tmp_path).text


def test_wrong_results_and_folders_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="results with runs and their summary"):
        write_page({"runs": []}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/index.html cannot be written"):
        write_page(
            made_results(("carp",), seeds=(0,), epochs=2, linear=False)[0], tmp_path / "file"
        )


def test_the_title_names_the_data_and_the_recipe_is_a_fact(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0,), epochs=2, linear=False)
    results["data"]["name"] = "flowers"
    text = (write_page(results, tmp_path)).read_text()
    assert "<h1>Comparison on flowers</h1>" in text and "<dt>name</dt><dd>photos</dd>" in text
    assert "<title>Comparison on flowers: photos</title>" in text


def test_a_page_of_some_runs_says_how_many_are_to_come(tmp_path):
    results, _ = made_results(("carp", "byol"), seeds=(0,), epochs=2, linear=False)
    results["planned"] = 5
    assert "2 of 5 runs were trained to their end. 3 more are to come." in (
        written(results, tmp_path).text
    )


def test_one_value_is_said_and_not_drawn(tmp_path):
    results, _ = made_results(("carp",), seeds=(0,), epochs=1, linear=False)
    assert "Not drawn, for there is one value only: consistency, nats: 4." in (
        written(results, tmp_path).text
    )


def test_page_of_a_search_with_trials_to_come_failed_and_chosen(tmp_path):
    results, _ = made_results(("carp",), seeds=(0,), epochs=2, linear=False)
    trials = {"carp": [{"lr": 1, "tau": HOSTILE}, {"lr": 2}, {"lr": 3}, {}]}
    (run,) = results["runs"]
    results["runs"] = [{**run, "label": f"carp-{i}"} for i in range(2)]
    results["runs"][1].update(status="failed", why="no memory", accuracy=None, curves=[])
    results["search"] = chosen(results["runs"], trials, 20)
    results["data"]["name"] = "flowers"
    del results["summary"]
    page = written(results, tmp_path)
    assert headings(page) == ["compared", "search", "troubled", "provenance", "reproduce"]
    assert "Search on flowers" in page.text and "mean over seeds, k = 20" in page.text
    top1 = run["accuracy"]["student"]["knn"]["backbone"]["20"][0]
    for row in (f"{top1:.2f} chosen", "lr=2 failed", "lr=3 to come", "those of the recipe to come"):
        assert row in page.text, row
