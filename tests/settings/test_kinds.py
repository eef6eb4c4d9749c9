"""What values may be: each kind takes what it should and nothing else, and says so in the same words."""

from typing import Annotated, Any, Dict, Optional, Tuple, Union

import pytest
from pydantic import TypeAdapter, ValidationError

from carp_plugin.settings import kinds
from carp_plugin.settings.model import Settings, field_at, key
from carp_plugin.settings.trainer import Run

NAN, INF = float("nan"), float("inf")


class Bounded(Settings):
    """Bounds of a key."""

    workers: kinds.Int = key(0, "of a key", ge=0, le=512)
    share: kinds.Number = key(0.0, "of a key", ge=0, le=0.5)


KINDS = [
    (kinds.Count, "a whole number of at least 1", [1, 2**40], [0, -1, 1.0, True, "1", NAN, 10**30]),
    (
        kinds.NotNegative,
        "a number of at least 0",
        [0, 1e-9, 7, 1e20],
        [-0.1, NAN, INF, True, "0.1"],
    ),
    (kinds.NotNegative, "a number of at least 0", [1.5], [None, 10**400, [1], {}]),
    (kinds.Share, "a number between 0 and 1, not 0", [1, 0.5], [0, 0.0, 1.1, True, NAN]),
    (kinds.Part, "a number between 0 and 1, not 0 and not 1", [0.5], [0, 1, 1.5]),
    (kinds.Positive, "a number above 0", [1e-9, 3], [0, -1, INF]),
    (kinds.Seed, "a whole number between 0 and 4294967295", [0, 2**32 - 1], [2**32, -1]),
    (kinds.Switch, "True or False", [True, False], [0, 1, "True", None]),
    (
        kinds.Text,
        "a text (in quotes, if it looks like a number)",
        ["a", "ä"],
        ["", 3, "a\0b", ["a"]],
    ),
    (kinds.PathText, "a path", ["a", "/d/[x], {y}=1"], ["", 3, "a\0b", ["a"], None, True]),
    (
        kinds.FileName,
        "a text that a file can be named after: at most 100 letters, and no slash among them",
        ["a-b c.1"],
        ["a/b", "", "..", "a\nb", "x" * 101, 7],
    ),
    (
        Tuple[kinds.Index, kinds.Index],
        "a list of 2 items, each a whole number of at least 0",
        [[0, 1]],
        [[], [0], [0, -1], "01", 1],
    ),
    (Optional[kinds.Switch], "True or False or null", [None, True], ["null", 0]),
    (
        kinds.Devices,
        "a number of devices, a list of their indexes, or auto",
        [1, "auto", "0,1", -1, "2", [0, 1]],
        [True, 1.0, 10**12, "1" * 9, None, {}, -2],
    ),
    (
        kinds.Fraction,
        "-1 for all or a number between 0 and 1, not 0 and not 1",
        [-1, 0.5],
        [1, 1.5, -0.5, "all", NAN],
    ),
    (kinds.Steps, "-1 for no limit or a whole number of at least 1", [-1, 5], [0, -2, True]),
    (
        Union[kinds.Count, kinds.Share],
        "a whole number of at least 1 or a number between 0 and 1, not 0",
        [1, 5, 0.5],
        [0, 1.5, True],
    ),
    (kinds.Duration, "a time as DD:HH:MM:SS", ["00:01:00:00"], ["1h", 5, "1:2:3:4"]),
    (Dict[str, Any], "a node of keys and values", [{}, {"a": 1}], [[1], "a", 3]),
]


@pytest.mark.parametrize("kind, words, right, wrong", KINDS, ids=[kind[1] for kind in KINDS])
def test_a_kind_takes_what_it_says(kind, words, right, wrong):
    adapter = TypeAdapter(kind)
    for value in right:
        adapter.validate_python(value)
    for value in wrong:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)
    assert kinds.described(kind) == words


def test_a_number_keeps_its_type():
    """A share of an epoch and a number of batches are told apart by it."""
    adapter = TypeAdapter(kinds.Batches)
    assert type(adapter.validate_python(1)) is int and type(adapter.validate_python(1.0)) is float


def test_the_bounds_of_a_key_hold_and_are_said():
    for name, words, wrong in (
        ("workers", "a whole number between 0 and 512", [513, -1, 10**30]),
        ("share", "a number between 0 and 0.5", [0.6, -0.1, NAN, 10**400]),
    ):
        assert kinds.words_of(Bounded.model_fields[name]) == words
        for value in wrong:
            with pytest.raises(ValidationError):
                Bounded(**{name: value})
    assert Bounded(workers=512, share=0.5).share == 0.5


def test_a_path_is_expanded_once(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "$HOME/x")
    adapter = TypeAdapter(kinds.PathText)
    assert adapter.validate_python("~/d") == adapter.validate_python("$HOME/d") == "/home/me/d"
    assert adapter.validate_python("${DATA}/d") == "$HOME/x/d"  # not twice
    assert adapter.validate_python("/d/$NO_SUCH/~") == "/d/$NO_SUCH/~"


def test_words_go_before_what_the_type_would_say():
    assert kinds.described(Annotated[int, kinds.Words("a lucky number")]) == "a lucky number"


@pytest.mark.parametrize("dotted", ["checkpoint.dir", "resume_from_checkpoint", "default_root_dir"])
def test_paths_are_known_as_paths(dotted):
    field = field_at(Run, dotted)
    assert field is not None and kinds.is_path(field.annotation, field.metadata)
    other = field_at(Run, "wandb.project")
    assert other is not None and not kinds.is_path(other.annotation, other.metadata)
