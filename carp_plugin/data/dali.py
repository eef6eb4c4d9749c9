"""What DALI, which decodes images by itself, says of one that it cannot decode."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Sequence

from carp_plugin.data.images import ImageError, read_image
from carp_plugin.data.listing import shown
from carp_plugin.errors import UserError

_SEARCHED = 10_000  # files that a search for a bad one looks at: a minute or two


def naming_dali_failures(module: Any, root: str, files: Sequence[str]) -> Any:
    """A DALI data module that says an image it cannot decode in a sentence.

    DALI decodes by itself: it replaces nothing, whatever ``data.max_bad_fraction`` is, and names no file. The first
    one that Pillow cannot read either is looked for among the files, unless they are many.

    Args:
        module: with ``setup`` and ``train_dataloader``; changed in place.
        root: folder of the training images.
        files: their paths.

    Raises:
        ImageError: from the module's ``setup``, which decodes the first batch, and from its loader.
    """
    setup, train_dataloader = module.setup, module.train_dataloader

    def guarded_setup(stage: Optional[str] = None) -> None:
        with _saying_dali(root, files):
            setup(stage)

    module.setup = guarded_setup
    module.train_dataloader = lambda: _Decoding(train_dataloader(), root, files)
    return module


class _Decoding:
    """A DALI iterator whose failures are a user's mistake like any other."""

    def __init__(self, iterator: Any, root: str, files: Sequence[str]) -> None:
        self._iterator, self._root, self._files = iterator, root, files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __len__(self) -> int:
        return len(self._iterator)

    def __iter__(self) -> _Decoding:
        with _saying_dali(self._root, self._files):
            iter(self._iterator)
        return self

    def __next__(self) -> Any:
        with _saying_dali(self._root, self._files):
            return next(self._iterator)


@contextmanager
def _saying_dali(root: str, files: Sequence[str]) -> Iterator[None]:
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
            f"DALI cannot decode an image of {root} ({reason}){_first_bad(files)}; mend it or take it out, "
            "or set data.format=image_folder, which names every such image and goes on without a few of them."
        ) from error


def _first_bad(files: Sequence[str]) -> str:
    for path in sorted(files) if len(files) <= _SEARCHED else []:
        try:
            read_image(path)
        except ImageError as error:
            return f", likely {str(error).partition('the image ')[2].replace(' cannot be read', '').rstrip('.')}"
    return ""


#: Formats of photographs that its decoder does not know.
_NOT_DALI = frozenset(".gif .avif .avifs .heic .heif .tga .mpo".split())


def check_decodable(files: Sequence[str]) -> None:
    """DALI knows the formats of all files, by their endings.

    Raises:
        UserError: of one that it does not.
    """
    others = [path for path in files if os.path.splitext(path)[1].lower() in _NOT_DALI]
    if others:
        raise UserError(
            f"DALI does not decode {len(others)} of the {len(files)} images, such as {shown(others[0])}; convert them "
            "to .jpg or .png, or set data.format=image_folder, which reads them."
        )
