"""What a search chooses."""

from carp_plugin.compare.search import chosen

TRIALS = {"carp": [{"lr": 1}, {"lr": 2}, {"lr": 3}]}


def run(trial, seed, top1, status="ok"):
    knn = {"backbone": {"20": [top1, None]}}
    accuracy = {"student": {"knn": knn}} if status != "failed" else {}
    return {"label": f"carp-{trial}", "seed": seed, "status": status, "accuracy": accuracy}


def test_highest_mean_over_seeds():
    runs = [run(0, 0, 60.0), run(0, 1, 62.0), run(1, 0, 70.0), run(1, 1, 50.0), run(2, 0, 10.0)]
    found = chosen(runs, TRIALS, 20)["methods"]["carp"]
    assert found["best"] == {"lr": 1}
    assert [row["mean"] for row in found["trials"]] == [61.0, 60.0, 10.0]


def test_a_trial_that_failed_or_collapsed_once_is_not_chosen():
    runs = [
        run(0, 0, 50.0),
        run(1, 0, 90.0),
        run(1, 1, None, "failed"),
        run(2, 0, 80.0, "collapsed"),
    ]
    found = chosen(runs, TRIALS, 20)["methods"]["carp"]
    assert found["best"] == {"lr": 1} and found["trials"][1]["knn"] == [90.0, None]


def test_of_equals_the_first():
    assert chosen([run(2, 0, 50.0), run(1, 0, 50.0)], TRIALS, 20)["methods"]["carp"]["best"] == {
        "lr": 2
    }


def test_nothing_is_chosen_where_nothing_ran():
    assert chosen([], TRIALS, 20)["methods"]["carp"]["best"] is None
