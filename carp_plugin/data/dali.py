"""What DALI, which decodes images by itself, says of one that it cannot decode."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Optional

from carp_plugin.data.images import ImageError, read_image
from carp_plugin.errors import UserError

_SEARCHED = 10_000  # files that a search for a bad one looks at: a minute or two


def naming_dali_failures(module: Any, root: Path) -> Any:
    """A DALI data module that says an image it cannot decode in a sentence.

    DALI decodes by itself: it replaces nothing, whatever ``data.max_bad_fraction`` is, and names no file. The first
    one that Pillow cannot read either is looked for among the files of ``root``, unless they are many.

    Args:
        module: with ``setup`` and ``train_dataloader``; changed in place.
        root: folder of the training images.

    Raises:
        ImageError: from the module's ``setup``, which decodes the first batch, and from its loader.
    """
    setup, train_dataloader = module.setup, module.train_dataloader

    def guarded_setup(stage: Optional[str] = None) -> None:
        with _saying_dali(root):
            setup(stage)

    module.setup = guarded_setup
    module.train_dataloader = lambda: _Decoding(train_dataloader(), root)
    return module


class _Decoding:
    """A DALI iterator whose failures are a user's mistake like any other."""

    def __init__(self, iterator: Any, root: Path) -> None:
        self._iterator, self._root = iterator, root

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __len__(self) -> int:
        return len(self._iterator)

    def __iter__(self) -> _Decoding:
        with _saying_dali(self._root):
            iter(self._iterator)
        return self

    def __next__(self) -> Any:
        with _saying_dali(self._root):
            return next(self._iterator)


@contextmanager
def _saying_dali(root: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("encountered:")[2].strip().partition("\n")[0]
        if "decode" not in str(error):
            reason = reason or " ".join(str(error).split())[:200]
            raise UserError(
                f"DALI fails: {reason}; data.format=image_folder does without it."
            ) from error
        raise ImageError(
            f"DALI cannot decode an image of {root} ({reason}){_first_bad(root)}; mend it or take it out, "
            "or set data.format=image_folder, which names every such image and goes on without a few of them."
        ) from error


def _first_bad(root: Path) -> str:
    paths = list(islice((path for path in root.rglob("*") if path.is_file()), _SEARCHED + 1))
    for path in sorted(paths) if len(paths) <= _SEARCHED else []:
        try:
            read_image(path)
        except ImageError as error:
            return f", likely {str(error).partition('the image ')[2].replace(' cannot be read', '').rstrip('.')}"
    return ""
