"""Rows of a comparison: methods by their names, variants by their labels, and slips in either."""

import pytest

from carp_plugin.errors import UserError
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.variants import Variant, nested, rows

CARP = {"method": "carp"}


def test_a_method_is_a_variant_whose_label_is_the_method():
    found = rows(["byol"], {"K-64": {**CARP, "settings": {"max_epochs": 2}, "paper": 48.5}})
    assert found == [
        Variant("byol", "byol"),
        Variant("K-64", "carp", {"max_epochs": 2}, 48.5),
    ]


def test_variants_alone_are_all_that_is_compared():
    asked = read_comparison({"name": "a", "variants": {"one": CARP}})
    assert [row.label for row in asked.rows()] == ["one"]
    asked = read_comparison({"name": "a", "variants": {"one": CARP}, "methods": ["byol"]})
    assert [row.label for row in asked.rows()] == ["byol", "one"]
    assert [row.label for row in read_comparison({"name": "a"}).rows()][0] == "carp"


def test_keys_with_dots_are_nodes():
    keys = {"a.b": 1, "a": {"c.d": 2}, "e": [{"f.g": 3}]}
    assert nested(keys) == {"a": {"b": 1, "c": {"d": 2}}, "e": [{"f.g": 3}]}
    with pytest.raises(UserError, match="a.b.c is not a key of the configuration"):
        nested({"a.b": 1, "a.b.c": 2})


MISTAKES = {
    "no row": ({"methods": []}, "methods and variants are both empty; give methods="),
    "a label twice": ({"methods": ["a"], "variants": {"a": CARP}}, "call it otherwise"),
    "a path": ({"variants": {"a/b": CARP}}, "a text that a file can be named after, got 'a/b'"),
    "no node": ({"variants": {"a": 3}}, "variants must be a node of keys and values, got {'a': 3}"),
    "no method": ({"variants": {"a": {}}}, "add it to the yaml file or as variants.a.method=VALUE"),
    "a slip": (
        {"variants": {"a": {"metod": "carp"}}},
        "variants.a.metod is not a key of a variant; did you mean 'method'?",
    ),
    "no number": (
        {"variants": {"a": {**CARP, "paper": "high"}}},
        "variants.a.paper must be a number or null, got 'high'",
    ),
    "what the comparison decides": (
        {"variants": {"a": {**CARP, "settings": {"seed": 3}}}},
        "variants.a.settings.seed is the comparison's to decide; leave it out",
    ),
    "a reference that is no row": (
        {"variants": {"K-64": CARP}, "reference": "K-65"},
        "reference=K-65 is no row; did you mean 'K-64'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake):
    given, sentence = MISTAKES[mistake]
    with pytest.raises(UserError) as raised:
        read_comparison({"name": "a", **given})
    assert sentence in str(raised.value)
