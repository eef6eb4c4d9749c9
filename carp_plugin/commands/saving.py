"""Where the numbers of an evaluation go: a file beside the checkpoint, and one that the user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Optional

from carp_plugin.errors import UserError
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.history import write_json


def check_file(json_file: Optional[str]) -> None:
    """What the user named can be a file; found out before anything is computed.

    Raises:
        UserError: it is a folder.
    """
    if json_file and Path(json_file).is_dir():
        raise UserError(f"--json {json_file} is a folder; give a file.")


def save(content: Mapping[str, Any], checkpoint: Path, name: str, json_file: Optional[str]) -> None:
    """Writes the result of an evaluation and says where, in one line.

    Args:
        content: everything that defines the numbers, and the numbers.
        checkpoint: that was evaluated; an earlier file beside it is left alone, a folder that cannot be written to too.
        name: of the file, without its ending.
        json_file: that the user named, or None; written over.

    Raises:
        UserError: the user's file cannot be written.
    """
    places = []
    try:
        beside = _free(checkpoint.parent, name, content)
        write_json(beside, dict(content))
        places.append(str(beside))
    except OSError as error:
        say(
            f"nothing is written beside the checkpoint ({error.strerror}); --json FILE names a file."
        )
    if json_file:
        path = Path(json_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, dict(content))
        except OSError as error:
            raise UserError(
                f"--json {path} cannot be written ({error.strerror}); give another file."
            ) from error
        places.append(str(path))
    if places:
        say(f"written to {' and '.join(places)}")


def _free(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """A name that no other result has; the same result over again takes its own place."""
    wanted = json.loads(json.dumps(dict(content)))
    number = 0
    while True:
        number += 1
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not path.exists():
            return path
        try:
            if json.loads(path.read_text()) == wanted:
                return path
        except ValueError:
            continue
