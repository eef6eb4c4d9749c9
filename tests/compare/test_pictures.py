"""Pictures of a comparison: same bytes from same results, nothing hidden, nothing executed."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from PIL import Image

from carp_plugin.compare.pictures import (
    bars,
    first_early_training,
    knn_curves,
    loss_terms,
    undrawn_terms,
    write_pictures,
)
from carp_plugin.compare.statistics import summarise
from carp_plugin.evaluation.drawing import PALETTE, short, svg, write_png
from carp_plugin.pages.curves import early_training
from tests.compare.made import made_results

METRICS = ("knn/student", "knn/teacher", "linear/student", "linear/teacher")


def lines(picture):
    """Drawn lines by colour and style: (x, y) of each."""
    (axes,) = picture.figure.axes
    return {
        (line.get_color(), line.get_linestyle()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
    }


def legend(picture):
    (found,) = picture.figure.legends
    return [text.get_text().strip() for text in found.get_texts()]


def renamed(results, old, new):
    for run in results["runs"]:
        if run["label"] == old:
            run["label"] = new
    results["summary"] = summarise(results["runs"], lambda run: {}, draws=10)
    return results


def everything(results):
    drawn = [bars(results, [metric]) for metric in METRICS]
    drawn += [knn_curves(results), first_early_training(results)]
    for method in ("carp", "byol", "swav"):
        drawn += loss_terms(results, method)
    return [picture for picture in drawn if picture is not None]


def test_same_results_give_the_same_bytes(tmp_path):
    first, second = (everything(made_results(("carp", "swav"), epochs=2)[0]) for _ in range(2))
    assert len(first) == 4 + 2 + 3 + 1
    assert [svg(picture) for picture in first] == [svg(picture) for picture in second]
    for folder, pictures in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        write_png(pictures[0], tmp_path / folder)
    (a, b) = ((tmp_path / folder / "knn-student.png").read_bytes() for folder in "ab")
    assert a == b and b"Software" not in a


def test_drawing_leaves_no_trace_in_the_global_settings():
    before = dict(matplotlib.rcParams)
    svg(bars(made_results()[0], METRICS))
    assert dict(matplotlib.rcParams) == before


def test_an_svg_is_well_formed_described_and_free_of_dates():
    for picture in everything(made_results(("carp", "swav"), epochs=2)[0]):
        text = svg(picture)
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and root.get("role") == "img"
        assert root.get("aria-label") == picture.alt and "viewBox" in root.attrib
        assert "width" not in root.attrib and "metadata" not in text and "<image" not in text
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(set(ids)) == len(ids)
        assert all(name.startswith(picture.name) for name in ids)
        assert "var(--ink" in text


def test_ids_of_two_pictures_do_not_meet():
    results, _ = made_results()
    ids = [
        {e.get("id") for e in ElementTree.fromstring(svg(p)).iter() if e.get("id")}
        for p in (bars(results, METRICS[:1]), bars(results, METRICS[1:2]))
    ]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", 'a"onload="x', "$\\frac{", "_hidden", "漢字", "n" * 300]
)
def test_names_are_text_whatever_they_hold(name):
    results, _ = made_results(("carp", "byol"), seeds=(0, 1), epochs=2)
    results = renamed(results, "byol", name)
    drawn = [bars(results, METRICS[:1]), knn_curves(results), *loss_terms(results, name)[:1]]
    for picture in drawn:
        text = svg(picture)
        root = ElementTree.fromstring(text)
        assert not [e for e in root.iter() if e.tag.endswith("script")]
        assert not [key for e in root.iter() for key in e.attrib if key.startswith("on")]
        assert len(text) < 100_000
    assert legend(knn_curves(results))[1] == short(name).strip()


def test_long_names_keep_both_ends():
    assert short("carp-with-a-very-long-name-K512") != short("carp-with-a-very-long-name-K256")
    assert len(short("x" * 100)) <= 22 and short("carp") == "carp"


def test_bars_begin_at_zero_and_share_one_scale():
    results, _ = made_results()
    limits = {bars(results, [metric]).figure.axes[0].get_xlim() for metric in METRICS}
    (limit,) = limits
    assert limit[0] == 0 and limit[1] >= 66


def test_bars_show_means_seeds_and_levels():
    results, _ = made_results(("carp", "swav"))
    (axes,) = bars(results, ["knn/student"]).figure.axes
    rows = results["summary"]["knn/student"]
    assert [bar.get_width() for bar in axes.patches] == [rows[m]["mean"] for m in ("carp", "swav")]
    dots = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 3]
    assert dots == [rows["carp"]["values"], rows["swav"]["values"]]
    levels = {
        line.get_label(): line.get_xdata()[0]
        for line in axes.lines
        if line.get_label()[:1].isalpha()
    }
    assert levels == {"random network": 27.0, "chance": pytest.approx(100 / 15)}
    assert bars(results, ["knn/student"]).alt.count("%") == 2


def test_a_bar_that_is_missing_says_why():
    results, _ = made_results(("carp", "swav"))
    (axes,) = bars(results, ["knn/teacher"]).figure.axes
    assert [text.get_text().strip() for text in axes.texts] == ["no teacher"]


def test_one_seed_has_no_whisker():
    results, _ = made_results(("carp",), seeds=(0,))
    (axes,) = bars(results, ["knn/student"]).figure.axes
    assert not axes.containers[0].errorbar and len(axes.containers) == 1


def test_curves_are_means_over_seeds_student_solid_teacher_dashed():
    results, _ = made_results(("carp", "swav"), epochs=3)
    picture = knn_curves(results)
    drawn = lines(picture)
    mine = [run["curves"] for run in results["runs"] if run["label"] == "carp"]
    mean = sum(curve[2]["knn_teacher"] for curve in mine) / 3
    epochs, values = drawn[PALETTE[0], "--"]
    assert epochs == [1, 2, 3] and values[1] == pytest.approx(mean)
    assert drawn[PALETTE[0], "-"][0] == [0, 1, 2, 3]  # epoch -1 is the random network
    assert (PALETTE[1], "-") in drawn and (PALETTE[1], "--") not in drawn
    assert legend(picture) == ["carp", "swav", "student", "teacher", "random network"]
    bottom = picture.figure.axes[0].get_ylim()[0]
    assert bottom == 20  # the ten per cent below the random network's 27; chance lies under it
    assert "teacher" not in legend(knn_curves(made_results(("swav",), epochs=2)[0]))


def test_epochs_without_knn_and_values_that_are_no_numbers_are_skipped():
    results, _ = made_results(("carp",), seeds=(0,), epochs=4)
    curve = results["runs"][0]["curves"]
    del curve[2]["knn_student"]
    curve[3]["knn_student"] = float("nan")
    curve[3]["train_consistency"] = None
    assert lines(knn_curves(results))[PALETTE[0], "-"][0] == [0, 1, 4]
    assert lines(loss_terms(results, "carp")[0])[PALETTE[0], "-"][0] == [1, 2, 4]


def test_figure_a1_has_random_student_and_teacher():
    results, _ = made_results(("byol", "carp"), epochs=4)
    picture = first_early_training(results)
    drawn = lines(picture)
    assert drawn[PALETTE[0], "-"][1][0] == 27.0
    assert drawn[PALETTE[1], "--"][0] == [1, 2, 3, 4]
    assert legend(picture) == ["student", "teacher", "random network"]
    last = results["runs"][3]["curves"][-1]
    assert (
        f"student {last['knn_student']:.1f} %, teacher {last['knn_teacher']:.1f} %" in picture.alt
    )


def test_figure_a1_takes_the_random_level_from_outside_where_curves_lack_it():
    curves = [{"epoch": 0, "knn_student": 40.0}, {"epoch": 1, "knn_student": 50.0}]
    picture = early_training(curves, random=12.5)
    assert any(list(line.get_ydata()) == [12.5, 12.5] for line in picture.figure.axes[0].lines)
    assert legend(picture) == ["student", "random network"]
    assert early_training([{"epoch": 0, "train_loss": 1.0}]) is None


def test_terms_of_carp_come_in_the_order_of_its_objective_and_others_by_name():
    results, _ = made_results(("carp", "byol"))
    for run in results["runs"]:
        for entry in run["curves"][1:]:
            entry.update(
                train_acc1=3.0,
                train_class_loss=2.0,
                train_seconds=9.0,
                val_loss=1.0,
                train_prototypes_used=0.5 + entry["epoch"] / 10,
            )
            entry["train_something_new"] = 0.25 * entry["epoch"]
    names = [picture.name for picture in loss_terms(results, "carp")]
    terms = ["consistency", "entropy_gap", "information", "prototypes_used", "something_new"]
    assert names == [f"terms-{term}" for term in terms]
    (axes,) = loss_terms(results, "carp")[0].figure.axes
    assert axes.get_ylabel() == "consistency, nats" and axes.get_xlabel() == "epochs"


def test_nothing_measured_draws_nothing():
    results, _ = made_results(("carp",), seeds=(0,), failed=[("carp", 0)])
    assert bars(results, METRICS) is None and knn_curves(results) is None
    assert loss_terms(results, "carp") == [] and first_early_training(results) is None


def test_pictures_of_a_readme_are_pngs_on_white(tmp_path):
    paths = write_pictures(made_results(("carp",), epochs=2)[0], tmp_path / "new")
    assert [path.name for path in paths] == ["bars.png", "knn-curves.png", "early-training.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert image.width >= 700


def test_chance_is_drawn_where_accuracies_are_near_it():
    results, _ = made_results(("carp",), epochs=2)
    for run in results["runs"]:
        run["accuracy"].pop("random", None)
        for entry in run["curves"]:
            entry.update({key: 7.5 for key in entry if key.startswith("knn_")})
    picture = knn_curves(results)
    assert "chance" in legend(picture) and picture.figure.axes[0].get_ylim()[0] == 0


def test_what_has_one_value_is_not_drawn_and_said():
    results, _ = made_results(("carp",), epochs=3, linear=False)
    for run in results["runs"]:
        for entry in run["curves"][1:]:
            entry.update(train_collapse=0.0, train_feature_rows=512.0)
    names = [picture.name for picture in loss_terms(results, "carp")]
    assert names == ["terms-consistency", "terms-entropy_gap", "terms-information"]
    said = undrawn_terms(results, "carp")
    assert said == "Not drawn, for there is one value only: collapse: 0; feature rows: 512."
    results["runs"][1]["curves"][2]["train_collapse"] = 1.0
    assert "terms-collapse" in [picture.name for picture in loss_terms(results, "carp")]
    assert "collapse" not in undrawn_terms(results, "carp")
