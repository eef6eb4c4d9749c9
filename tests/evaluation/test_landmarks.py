"""Ground truth of others is read without running what is in it; what it lacks is said in a sentence."""

import collections
import os
import pickle

import numpy as np
import pytest

from carp_plugin.errors import UserError
from carp_plugin.evaluation.landmarks import read_ground_truth


def truth(**changes):
    """Three images of a database and two queries."""
    made = {
        "imlist": ["a_0", "b_0", "c_0"],
        "qimlist": ["q_0", "q_1"],
        "gnd": [
            {"bbx": [1.5, 2.0, 9.0, 8.0], "easy": [0], "hard": [1, 2], "junk": []},
            {"bbx": [0, 0, 5, 5], "easy": [], "hard": [2], "junk": [0]},
        ],
    }
    return {**made, **changes}


def written(folder, content, **how):
    path = folder / "gnd.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, **how))
    return str(path)


def with_arrays(content):
    """The same with arrays and numpy's numbers in the place of lists."""
    gnd = [
        {
            "bbx": np.array(one["bbx"], dtype=np.float32),
            "easy": np.array(one["easy"], dtype=np.int64),
            "hard": np.array(one["hard"], dtype=">i4"),
            "junk": [np.int32(place) for place in one["junk"]],
        }
        for one in content["gnd"]
    ]
    return collections.OrderedDict(content, imlist=np.array(content["imlist"]), gnd=gnd)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("arrays", [False, True])
def test_every_form_of_the_file_is_read(protocol, arrays, tmp_path):
    content = with_arrays(truth()) if arrays else truth()
    found = read_ground_truth(written(tmp_path, content, protocol=protocol))
    assert found.database == ["a_0", "b_0", "c_0"]
    assert [query.name for query in found.queries] == ["q_0", "q_1"]
    assert found.queries[0].box == (1.5, 2.0, 9.0, 8.0)
    assert [found.queries[0].images[kind].tolist() for kind in ("easy", "hard", "junk")] == [
        [0],
        [1, 2],
        [],
    ]
    assert found.queries[1].images["junk"].tolist() == [0]


def test_what_python_2_wrote_is_read(tmp_path):
    """Texts and the bytes of arrays are 8-bit strings there, and numpy's module has its old name."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'" + "".join(f"\\x{b:02x}" for b in np.array([1, 200]).tobytes()).encode() + b"'\ntb"
    )
    names = b"(lp0\n" + b"".join(b"S'i%d'\na" % i for i in range(201))
    one = b"(dS'bbx'\n(lI0\naI0\naF5.5\naI5\nasS'easy'\n" + array + b"sS'hard'\n(lsS'junk'\n(ls"
    content = b"(dS'imlist'\n" + names + b"sS'qimlist'\n(lS'q'\nasS'gnd'\n(l" + one + b"as."
    found = read_ground_truth(written(tmp_path, content))
    assert len(found.database) == 201 and found.queries[0].images["easy"].tolist() == [1, 200]


class Hostile:
    """Runs something when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "run",
    [
        lambda file: Hostile(os.system, f"touch {file}"),
        lambda file: Hostile(os.mkdir, str(file)),
        lambda file: Hostile(eval, f"open({str(file)!r}, 'w')"),
        lambda file: Hostile(open, str(file), "w"),
        lambda file: Hostile(getattr, os, "system"),
        lambda file: Hostile(np.load, str(file)),
        lambda file: Hostile(np.save, str(file), 1),
        lambda file: Hostile(np.frombuffer, b"1234"),
    ],
    ids=["system", "mkdir", "eval", "open", "getattr", "np.load", "np.save", "np.frombuffer"],
)
def test_a_hostile_file_runs_nothing(run, protocol, tmp_path):
    file = tmp_path / "made"
    try:
        path = written(tmp_path, truth(gnd=run(file)), protocol=protocol)
    except TypeError:  # a module within, which pickle itself does not write
        path = written(tmp_path, b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.")
    with pytest.raises(
        UserError, match="wants to run .*, which is not done; take the file"
    ) as said:
        read_ground_truth(path)
    assert not file.exists() and "\n" not in str(said.value)


def test_no_known_name_runs_what_is_given_to_it(tmp_path):
    """Stand-ins take numbers and bytes; an array of objects would hold pointers."""
    kind = b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR"
    hostile = [
        b"cnumpy.core.multiarray\nscalar\n(" + kind + b"C\x08AAAAAAAAtR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntVb\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"cnumpy._core.numeric\n_frombuffer\n(C\x02AA" + kind + b"(I1\ntVC\ntR.",
        b"cnumpy\nndarray\n)R(I1\n(I1000000000\nt" + kind + b"I00\nC\x01Atb.",
    ]
    for content in hostile:
        with pytest.raises(UserError, match="the ground truth .* (is no pickle|wants to run)"):
            read_ground_truth(written(tmp_path, content))


DAMAGED = {
    "nothing": (b"", "is no pickle that can be read"),
    "text": (b"all_souls_000013\n", "is no pickle that can be read"),
    "cut off": (pickle.dumps(truth())[:-20], "is no pickle that can be read"),
    "a list": ([1, 2], "a list for a dict"),
    "no gnd": ({"imlist": ["a"], "qimlist": ["b"]}, "no 'gnd'"),
    "no easy": (truth(gnd=[{"bbx": [0, 0, 1, 1], "ok": [], "junk": []}] * 2), "no 'easy'"),
    "lengths": (truth(qimlist=["q"]), "differ in length"),
    "no queries": (truth(qimlist=[], gnd=[]), "a list without images"),
    "names": (truth(imlist=[1, 2, 3]), "'' is no name"),
    "above": (truth(imlist=["../../etc/passwd", "b", "c"]), "is no name of an image"),
    "absolute": (truth(imlist=["/etc/passwd", "b", "c"]), "is no name of an image"),
    "beyond": (truth(imlist=["a"]), "names image 2 of 1"),
    "below": (
        truth(gnd=[{"bbx": [0, 0, 1, 1], "easy": [-1], "hard": [], "junk": []}] * 2),
        "names image -1 of 3",
    ),
    "halves": (
        truth(gnd=[{"bbx": [0, 0, 1, 1], "easy": [0.5], "hard": [], "junk": []}] * 2),
        "no whole numbers",
    ),
    "no number": (
        truth(gnd=[{"bbx": [0, 0, 1, 1], "easy": [float("nan")], "hard": [], "junk": []}] * 2),
        "no whole numbers",
    ),
    "texts": (
        truth(gnd=[{"bbx": [0, 0, 1, 1], "easy": ["a"], "hard": [], "junk": []}] * 2),
        "something else",
    ),
    "empty box": (
        truth(gnd=[{"bbx": [3, 0, 1, 1], "easy": [], "hard": [], "junk": []}] * 2),
        "holds no pixel",
    ),
    "box of nan": (
        truth(gnd=[{"bbx": [0, 0, float("nan"), 1], "easy": [], "hard": [], "junk": []}] * 2),
        "holds no pixel",
    ),
    "short box": (
        truth(gnd=[{"bbx": [0, 0, 1], "easy": [], "hard": [], "junk": []}] * 2),
        "revisited",
    ),
    "huge": (
        truth(gnd=[{"bbx": [0, 0, 1, 1], "easy": [1e300], "hard": [], "junk": []}] * 2),
        "names image 1e.300 of 3",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_wrong_file_earns_one_sentence(case, tmp_path):
    content, says = DAMAGED[case]
    with pytest.raises(UserError, match=says) as said:
        read_ground_truth(written(tmp_path, content))
    assert str(said.value).startswith("the ground truth ") and "\n" not in str(said.value)


def test_a_missing_file_and_what_is_none_earn_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read .No such file"):
        read_ground_truth(str(tmp_path / "nowhere.pkl"))
    for place in (tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="it is not a file"):
            read_ground_truth(str(place))
