"""Ground truth of the revisited Oxford and Paris landmarks (Radenović et al., 2018), which comes as a pickle.

A pickle is a program. Here it may make lists, dicts, texts, numbers and arrays of numbers, the latter by classes of
this file in the place of numpy's; whatever else it names ends the reading before it is run.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
from numpy.typing import NDArray

from carp_plugin.errors import UserError

#: What a query's images are called there.
KINDS = ("easy", "hard", "junk")

_LARGEST = 2**28  # bytes; the published files have less than 1 MB


class Query(NamedTuple):
    """A part of an image, and how each image of the database stands to it.

    Attributes:
        name: of its image, without an ending.
        box: left, top, right, bottom in pixels.
        images: ``"easy"``, ``"hard"``, ``"junk"`` -> places in the database.
    """

    name: str
    box: Tuple[float, float, float, float]
    images: Dict[str, NDArray[np.int64]]


class GroundTruth(NamedTuple):
    """What a ground-truth file holds.

    Attributes:
        database: names of the images that are searched, without endings.
        queries: what is searched for.
    """

    database: List[str]
    queries: List[Query]


def read_ground_truth(path: str) -> GroundTruth:
    """Reads ``gnd_roxford5k.pkl``, ``gnd_rparis6k.pkl`` or one of their form, without running what is in it.

    Args:
        path: of a pickle of ``{"imlist": [name], "qimlist": [name], "gnd": [{"bbx", "easy", "hard", "junk"}]}``.

    Raises:
        UserError: there is no such file, it is no such pickle, or it wants to run something.
    """
    try:
        content = _load(Path(path))
    except _Refused as what:
        raise UserError(
            f"the ground truth {path} wants to run {what}, which is not done; take the file from its publisher."
        ) from None
    except OSError as error:
        raise UserError(
            f"the ground truth {path} cannot be read ({error.strerror}); give a file such as gnd_roxford5k.pkl."
        ) from None
    except Exception as error:  # whatever a damaged pickle stumbles over
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(
            f"the ground truth {path} is no pickle that can be read ({reason}); give a file such as gnd_roxford5k.pkl."
        ) from None
    try:
        return _checked(content)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = (
            f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        )
        raise UserError(
            f"the ground truth {path} is not that of the revisited Oxford and Paris sets ({reason}): it must hold "
            "imlist, qimlist, and gnd with bbx, easy, hard and junk of every query."
        ) from None


def _checked(content: Any) -> GroundTruth:
    """The content of a pickle as what it is to be; whatever it is not raises."""
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__} for a dict")
    database, queries = _names(content["imlist"]), _names(content["qimlist"])
    truths = content["gnd"]
    if not isinstance(truths, (list, tuple)) or len(truths) != len(queries) or not queries:
        raise ValueError("gnd and qimlist differ in length, or are empty")
    found = []
    for name, truth in zip(queries, truths):
        if not isinstance(truth, dict):
            raise TypeError(f"gnd of {name} is a {type(truth).__name__}")
        left, top, right, bottom = _numbers(truth["bbx"]).tolist()
        if (
            not all(map(math.isfinite, (left, top, right, bottom)))
            or right <= left
            or bottom <= top
        ):
            raise ValueError(f"the bbx of {name} holds no pixel")
        images = {kind: _places(truth[kind], len(database), name) for kind in KINDS}
        found.append(Query(name, (left, top, right, bottom), images))
    return GroundTruth(database, found)


def _names(value: Any) -> List[str]:
    if not isinstance(value, (list, tuple)):
        value = _values(value).tolist()
    names = [str(name) if isinstance(name, str) else "" for name in value]
    for name in names:
        inside = name and not PurePosixPath(name).is_absolute() and ".." not in name.split("/")
        if not inside or not name.isprintable() or "\\" in name:
            raise ValueError(f"{name!r} is no name of an image")
    if not names:
        raise ValueError("a list without images")
    return names


def _places(value: Any, images: int, name: str) -> NDArray[np.int64]:
    """Places in the database, each once."""
    places = np.unique(_numbers(value))
    if not np.array_equal(places, np.floor(places)):  # nan too
        raise ValueError(f"places of {name} are no whole numbers")
    if len(places) and not 0 <= places[0] <= places[-1] < images:
        raise ValueError(f"{name} names image {places[-1]:g} of {images}")
    return places.astype(np.int64)


def _numbers(value: Any) -> NDArray[np.float64]:
    """(n,) of a list, a tuple or an array."""
    values = value if isinstance(value, (list, tuple)) else _values(value).tolist()
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
        raise TypeError("a list of numbers holds something else")
    return np.array(values, dtype=np.float64)


def _values(value: Any) -> np.ndarray:
    if not isinstance(value, _Array):
        raise TypeError(f"a {type(value).__name__} for a list")
    return value.values.ravel()


class _Refused(Exception):
    """A pickle names what is none of the few things that it may."""


class _Kind:
    """In the place of numpy's dtype: a kind of number or text."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    @property
    def dtype(self) -> np.dtype:
        kind, size = self.code[:1], self.code[1:]
        if kind not in "biufSU" or not size.isdigit() or self.order not in "<>=|":
            raise ValueError(f"arrays of {self.code!r} are not read")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """In the place of numpy's array: its values, of a plain kind."""

    values = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        self.values = _from_bytes(data, kind, shape, "F" if by_columns else "C").values


def _from_bytes(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """What an array writes of itself; Python 2 wrote its bytes as a text."""
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    array = _Array()
    array.values = np.frombuffer(data, kind.dtype).reshape(
        shape, order="F" if order == "F" else "C"
    )
    return array


def _scalar(kind: Any, data: Any) -> Any:
    return _from_bytes(data, kind, (1,), "C").values[0].item()


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in an old protocol."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _empty(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """Likewise, where there are none."""
    return b""


_CORES = ("numpy.core", "numpy._core")
#: What a pickle may name -> what stands in its place.
_KNOWN: Dict[Tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    **{(f"{core}.multiarray", "_reconstruct"): _empty for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_bytes for core in _CORES},
}


class _Reader(pickle.Unpickler):
    """Imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands in the place of a name.

        Raises:
            _Refused: it has none.
        """
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}"[:80])
        return _KNOWN[module, name]


def _load(path: Path) -> Any:
    if not path.is_file():  # a pipe would be waited for without end
        path.stat()
        raise ValueError("it is not a file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MB")
    with open(path, "rb") as file:
        return _Reader(file, encoding="latin1").load()
