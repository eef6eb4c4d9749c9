"""A paper's numbers beside ours: in the results, in the table, on the page, in a picture."""

import pytest

from carp_plugin.compare.page import html_of
from carp_plugin.compare.paper import beside, picture, sentences
from carp_plugin.compare.statistics import lines_of, markdown
from carp_plugin.settings.variants import Paper, Variant
from tests.compare.made import made_results

METHODS = ("carp", "byol", "swav", "barlow_twins")
PAPER = Paper(source="table 9", measures="k-NN, %", claim="small things matter.")


def with_paper(numbers):
    """Made results beside a paper's numbers, in the order of METHODS."""
    results, _ = made_results(METHODS, seeds=(0,), epochs=1, linear=False)
    rows = [Variant(label, label, {}, number) for label, number in zip(METHODS, numbers)]
    return {**results, "paper": beside(PAPER, rows, results["summary"])}


def means(metric="knn/student"):
    results, _ = made_results(METHODS, seeds=(0,), epochs=1, linear=False)
    return [results["summary"][metric][label]["mean"] for label in METHODS]


def test_the_order_is_that_of_the_means():
    same = with_paper([2 * mean for mean in means()])["paper"]
    opposite = with_paper([-mean for mean in means()])["paper"]
    assert same["order"]["knn/student"] == pytest.approx(1)
    assert opposite["order"]["knn/student"] == pytest.approx(-1)
    # of the teachers there are two, which show no order
    assert same["order"]["knn/teacher"] is None


def test_one_number_for_all_has_no_order():
    assert with_paper([50.0] * 4)["paper"]["order"]["knn/student"] is None


def test_table_and_page_have_a_column_of_the_papers_numbers():
    results = with_paper([51.25, None, 0.11, 49.0])
    header, lines = lines_of(results)
    column = header.index("table 9")
    assert [line[column] for line in lines] == ["51.25", "", "0.11", "49.00", ""]
    assert all(len(line) == len(header) for line in lines)
    assert "| table 9 |" in markdown(results)
    page = html_of(results, ".")
    assert "table 9: small things matter." in page and "Its numbers: k-NN, %." in page
    del results["paper"]
    without = html_of(results, ".")
    assert page.count("<svg") == without.count("<svg") + 1 and "The paper</h2>" not in without


def test_the_picture_shows_the_rows_that_have_a_number():
    drawn = picture(with_paper([51.25, None, 0.11, 49.0]))
    above, below = drawn.figure.axes
    assert list(above.lines[0].get_ydata()) == [51.25, 0.11, 49.0]
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["carp", "swav", "barlow_twins"]


def test_a_claim_without_numbers_is_said_and_not_drawn():
    results = with_paper([None] * 4)
    assert sentences(results) == ["table 9: small things matter."] and picture(results) is None
    assert "table 9" not in lines_of(results)[0]
    del results["paper"]
    assert sentences(results) == [] and picture(results) is None
