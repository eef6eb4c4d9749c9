"""Mean, spread and paired differences of methods, on data whose answer is known."""

import io
import json
import time

import numpy as np
import pytest
from rich.console import Console

from carp_plugin.compare.bootstrap import half_width, paired_bootstrap
from carp_plugin.compare.statistics import (
    accuracy_of,
    explanation,
    lines_of,
    markdown,
    summarise,
    table,
)
from carp_plugin.errors import UserError
from tests.compare.made import correct_of, failed_run, made_results, made_run

KEY = "knn/student/20"
LABELS = ("carp", "swav", "byol", "barlow_twins")


def compared(ours, theirs, **settings):
    """The summary's row of byol against carp, from vectors (S, Q) of the student's k-NN."""
    vectors = {("byol", seed): {KEY: row} for seed, row in enumerate(ours)}
    vectors.update({("carp", seed): {KEY: row} for seed, row in enumerate(theirs)})
    runs = [made_run(method, seed, v) for (method, seed), v in vectors.items()]
    return summarise(runs, correct_of(vectors), draws=2000, **settings)["knn/student"]["byol"]


def random_vectors(seeds, images, rate=0.5, stream=0):
    return np.random.default_rng(stream).random((seeds, images)) < rate


def test_identical_vectors_differ_by_exactly_nothing():
    ours = random_vectors(3, 100)
    difference = compared(ours, ours)["difference"]
    assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)
    assert difference["level"] == 0.95 and difference["seeds"] == [0, 1, 2]


def test_known_shift_is_found_and_its_interval_excludes_zero():
    theirs = np.zeros((3, 100), dtype=bool)
    ours = theirs.copy()
    ours[:, :10] = True  # 10 images of 100 more, the same for every seed
    row = compared(ours, theirs)
    difference = row["difference"]
    assert row["mean"] == difference["mean"] == 10 and row["sd"] == 0
    # Resampled images: binomial of 100 at 0.1, whose 2.5 % and 97.5 % quantiles are 5 and 16.
    assert difference["low"] == pytest.approx(5, abs=0.5)
    assert difference["high"] == pytest.approx(16, abs=0.5)


def test_spread_over_seeds_alone_is_in_the_interval():
    """All images of a seed agree, so images add nothing: the mean of 2 of {0, 100} takes 0, 50 and 100."""
    ours = np.array([[True] * 50, [False] * 50])
    difference = compared(ours, np.zeros_like(ours))["difference"]
    assert (difference["mean"], difference["low"], difference["high"]) == (50, 0, 100)
    assert difference["resampled"] == "seeds and images"


def test_one_seed_resamples_images_only_and_says_so():
    row = compared(random_vectors(1, 200), random_vectors(1, 200, stream=1))
    assert row["sd"] is None and row["n"] == 1
    assert row["difference"]["resampled"] == "images"
    assert row["difference"]["low"] < row["difference"]["mean"] < row["difference"]["high"]


def test_resampling_kinds_of_images_is_resampling_images():
    """The multinomial over kinds of images has the distribution of drawing Q indices with replacement."""
    stream = np.random.default_rng(3)
    differences = stream.integers(-1, 2, (3, 60)).astype(np.int8)
    fast = paired_bootstrap(differences, 20_000, np.random.default_rng(0))
    seeds = stream.integers(0, 3, (20_000, 3, 1))
    images = stream.integers(0, 60, (20_000, 1, 60))
    slow = np.quantile(100 * differences[seeds, images].mean(axis=(1, 2)), [0.025, 0.975])
    assert [fast.low, fast.high] == pytest.approx(slow.tolist(), abs=0.6)


def test_many_seeds_are_drawn_in_chunks_with_the_same_result(monkeypatch):
    differences = np.random.default_rng(0).integers(-1, 2, (6, 300)).astype(np.int8)
    whole = paired_bootstrap(differences, 500, np.random.default_rng(1))
    monkeypatch.setattr("carp_plugin.compare.bootstrap._CHUNK", 3000)
    assert paired_bootstrap(differences, 500, np.random.default_rng(1)) == whole


def test_pairing_narrows_the_interval():
    stream = np.random.default_rng(0)
    hardness = stream.random(500)
    ours = hardness + stream.normal(0, 0.05, (3, 500)) < 0.55
    theirs = hardness + stream.normal(0, 0.05, (3, 500)) < 0.5
    paired = compared(ours, theirs)["difference"]
    shuffled = compared(stream.permuted(ours, axis=1), theirs)["difference"]
    assert paired["mean"] == pytest.approx(shuffled["mean"])
    assert paired["high"] - paired["low"] < 0.6 * (shuffled["high"] - shuffled["low"])


def where_seeds_agree_on_images(stream):
    return tuple(np.tile(stream.random(300) < rate, (3, 1)) for rate in (0.6, 0.5))


def where_seeds_differ_far_more_than_images(stream):
    return tuple(stream.random((3, 300)) < stream.normal(rate, 0.08, (3, 1)) for rate in (0.6, 0.5))


def where_each_seed_gets_images_of_its_own_right(stream):
    return tuple(stream.random((3, 300)) < rate for rate in (0.6, 0.5))


@pytest.mark.parametrize(
    "simulated, least, most",
    [
        (where_seeds_agree_on_images, 0.90, 0.98),
        (where_seeds_differ_far_more_than_images, 0.78, 0.92),
        (where_each_seed_gets_images_of_its_own_right, 0.97, 1.0),
    ],
)
def test_three_seeds_cover_the_true_difference_as_often_as_is_documented(simulated, least, most):
    """Nominal, too narrow and too wide: the three cases of bootstrap.py, which the page warns of."""
    stream, covered, trials = np.random.default_rng(5), 0, 300
    for _ in range(trials):
        ours, theirs = simulated(stream)
        interval = paired_bootstrap(ours.astype(np.int8) - theirs.astype(np.int8), 400, stream)
        covered += interval.low <= 10 <= interval.high
    assert least <= covered / trials <= most, covered / trials


def test_one_seed_covers_the_true_difference_of_its_images():
    stream, covered, trials = np.random.default_rng(5), 0, 300
    for _ in range(trials):
        ours, theirs = (stream.random((1, 300)) < rate for rate in (0.6, 0.5))
        interval = paired_bootstrap(ours.astype(np.int8) - theirs.astype(np.int8), 400, stream)
        covered += interval.low <= 10 <= interval.high
    assert 0.91 <= covered / trials <= 0.98, covered / trials


def test_ten_thousand_draws_take_less_than_two_seconds():
    ours, theirs = random_vectors(3, 1125), random_vectors(3, 1125, stream=1)
    started = time.perf_counter()
    paired_bootstrap(
        ours.astype(np.int8) - theirs.astype(np.int8), 10_000, np.random.default_rng(0)
    )
    assert time.perf_counter() - started < 2


def test_summary_is_json_and_deterministic():
    first, second = (made_results()[0]["summary"] for _ in range(2))
    assert json.loads(json.dumps(first)) == second


def test_a_method_more_leaves_the_intervals_of_the_others():
    few, many = (made_results(methods)[0]["summary"] for methods in (("carp", "byol"), LABELS))
    assert few["linear/teacher"]["byol"] == many["linear/teacher"]["byol"]


def test_order_of_runs_does_not_matter():
    results, correct = made_results()
    again = summarise(results["runs"][::-1], correct, draws=1000)
    for metric in again["metrics"]:
        assert again[metric] == results["summary"][metric]


def test_mean_and_spread_are_those_of_the_seeds():
    results, _ = made_results(seeds=(2, 0, 1))
    row = results["summary"]["knn/student"]["carp"]
    values = {
        run["seed"]: run["accuracy"]["student"]["knn"]["backbone"]["20"][0]
        for run in results["runs"]
        if run["label"] == "carp"
    }
    assert row["seeds"] == [0, 1, 2] and row["values"] == [values[seed] for seed in (0, 1, 2)]
    assert row["mean"] == pytest.approx(np.mean(list(values.values())))
    assert row["sd"] == pytest.approx(np.std(list(values.values()), ddof=1))
    assert row["difference"] is None  # the reference against itself


def test_methods_without_a_teacher_are_absent_from_its_metrics():
    summary = made_results()[0]["summary"]
    assert list(summary["knn/teacher"]) == ["carp", "byol"]
    assert list(summary["knn/student"]) == ["carp", "byol", "swav", "barlow_twins"]
    summary = made_results(("swav", "barlow_twins"))[0]["summary"]
    assert summary["metrics"] == ["knn/student", "linear/student"]


def test_only_shared_seeds_are_paired_and_failed_runs_are_counted():
    results, _ = made_results(("carp", "byol"), failed=[("carp", 0), ("byol", 2)])
    row = results["summary"]["knn/student"]["byol"]
    assert row["seeds"] == [0, 1] and row["difference"]["seeds"] == [1]
    assert row["difference"]["resampled"] == "images"
    assert results["summary"]["failed"] == {"carp": 1, "byol": 1}


def test_collapsed_runs_are_results():
    results, _ = made_results(("carp", "byol"), collapsed=[("byol", 2)])
    assert results["summary"]["knn/student"]["byol"]["n"] == 3
    assert results["summary"]["failed"] == {}


@pytest.mark.parametrize("settings", [{"methods": ("byol", "swav")}, {"failed": [("carp", 0)]}])
def test_no_difference_without_the_reference(settings):
    summary = made_results(seeds=(0,), **settings)[0]["summary"]
    assert summary["knn/student"]["byol"]["difference"] is None
    assert summary["knn/student"]["byol"]["mean"] > 0


def test_nothing_but_failed_runs():
    results, _ = made_results(("carp",), seeds=(0,), failed=[("carp", 0)])
    assert results["summary"]["metrics"] == [] and lines_of(results)[1] == []
    assert "carp, seed 0 failed: the loss was nan at step 12." in markdown(results)


def test_unrecorded_vectors_leave_the_mean_without_a_difference():
    results, _ = made_results(("carp", "byol"))
    row = summarise(results["runs"], lambda run: {}, draws=10)["knn/student"]["byol"]
    assert row["n"] == 3 and row["difference"] is None


def test_two_runs_of_a_seed_are_refused():
    results, correct = made_results(("carp", "byol"), seeds=(0,))
    with pytest.raises(UserError, match="byol has two runs of seed 0"):
        summarise([*results["runs"], results["runs"][-1]], correct)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda v: v[:-1], "different numbers of validation images"),
        (np.logical_not, "add up to .* but its accuracy is"),
        (lambda v: v[None], r"shape \(1, 400\), expected one value an image"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(spoil, says):
    results, correct = made_results(("carp", "byol"), seeds=(0,))
    byol = dict(correct(results["runs"][1]))
    vector = byol[KEY] = spoil(byol[KEY])
    if vector.shape == (399,):
        results["runs"][1]["accuracy"]["student"]["knn"]["backbone"]["20"][0] = 100 * vector.mean()
    vectors = {("carp", 0): correct(results["runs"][0]), ("byol", 0): byol}
    with pytest.raises(UserError, match=says):
        summarise(results["runs"], correct_of(vectors), draws=10)


def test_other_protocols_are_metrics_by_their_headlines():
    """Means over images have intervals, as accuracies do; what is no mean over images has a spread over seeds."""
    results, correct = made_results()
    aps = {}
    for run in results["runs"]:
        if run["status"] == "failed":
            continue
        stream = np.random.default_rng(run["seed"] + 10 * (run["label"] == "carp"))
        ap = aps[run["label"], run["seed"]] = stream.random(50)
        student = run["accuracy"]["student"]
        student["retrieval"] = {"headline": "mAP", "scores": {"mAP": {"value": 100 * ap.mean()}}}
        student["clustering"] = {"headline": "NMI", "scores": {"NMI": {"value": 7.0 + run["seed"]}}}

    def both(run):
        found = dict(correct(run))
        if (run["label"], run["seed"]) in aps:
            found["retrieval/student"] = aps[run["label"], run["seed"]]
        return found

    summary = summarise(results["runs"], both, draws=500)
    assert summary["metrics"][-2:] == ["clustering/student", "retrieval/student"]
    other = next(label for label in summary["retrieval/student"] if label != "carp")
    row = summary["retrieval/student"][other]
    seeds = row["difference"]["seeds"]
    expected = 100 * np.mean([aps[other, s] - aps["carp", s] for s in seeds])
    assert row["difference"]["mean"] == pytest.approx(expected)
    assert row["difference"]["low"] < expected < row["difference"]["high"]
    clustering = summary["clustering/student"][other]
    assert clustering["difference"] is None and clustering["sd"] > 0
    assert "what a protocol names" in explanation(summary)


def test_headline_k_picks_the_accuracy():
    run = {"accuracy": {"student": {"knn": {"backbone": {"20": [1.0, 2.0], "200": [3.0, 4.0]}}}}}
    assert accuracy_of(run, "knn/student") == 1 and accuracy_of(run, "knn/student", 200) == 3
    assert accuracy_of(run, "knn/student", 7) is None and accuracy_of(run, "knn/teacher") is None
    assert accuracy_of(failed_run("carp", 0), "knn/student") is None


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="at least 1, received 0"):
        summarise([], lambda run: {}, draws=0)


def test_half_width_is_students_t():
    assert half_width([1.0]) is None
    assert half_width([0.0, 2.0]) == pytest.approx(12.7062, abs=1e-3)  # t = 12.706, sd = sqrt 2
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, abs=1e-4)


def printed(results):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(results))
    return console.export_text()


def test_table_has_methods_differences_costs_and_troubles():
    results, _ = made_results(failed=[("swav", 1)], collapsed=[("byol", 2)])
    text = printed(results)
    row = results["summary"]["knn/teacher"]["byol"]
    assert f"{row['mean']:.2f} ± {row['sd']:.2f}" in text
    d = row["difference"]
    assert f"{d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f})" in text
    for words in ("k-NN (k = 20), student", "random network", "27.00", "62.5", "900"):
        assert words in text
    assert "byol, seed 2 collapsed: assignments are constant" in text
    assert "swav, seed 1 failed: the loss was nan at step 12." in text
    assert "paired by seed and image" in text and "too narrow" in text and "too wide" in text


def test_one_seed_is_marked_in_the_table():
    text = printed(made_results(seeds=(0,))[0])
    assert ")*" in text and "images alone are drawn" in text and "±" not in text


def test_markdown_is_a_table_of_equal_rows_whatever_the_names():
    results, _ = made_results(("carp", "byol"), failed=[("byol", 1)])
    for run in results["runs"]:
        run["label"] = run["label"].replace("byol", "a|b<script>[red]")
    results["summary"] = summarise(results["runs"], lambda run: {}, draws=10)
    text = markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert r"a\|b&lt;script>[red]" in text and "[red]" in printed(results)
