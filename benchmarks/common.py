"""What the benchmarks share: results that outlive an interruption, and where they were measured."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Optional

import torch

from carp_plugin.errors import UserError
from carp_plugin.training.callbacks.history import write_json
from carp_plugin.training.devices import Machine
from carp_plugin.training.report import provenance


def device_named(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        UserError: there is none of that name here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name!r} is no device; use cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} cannot be measured here; use cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    return device


class Record:
    """Results in a JSON file, written after each, so that a second call goes on where the first was stopped.

    Args:
        path: of the file; its folder is made.
        settings: what all results share; results of other settings are not continued.
        fresh: whether to begin anew.

    Raises:
        UserError: the file is there but is no record, holds results of other settings, or cannot be written.
    """

    def __init__(self, path: Path, settings: Dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.content: Dict[str, Any] = {"settings": settings, "results": {}}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = None if fresh or not path.is_file() else path.read_text()
        except OSError as error:
            raise UserError(
                f"{path} cannot be used for results ({error.strerror}); give another --out."
            ) from error
        if text is not None:
            self._continue(text)

    def _continue(self, text: str) -> None:
        try:
            found = json.loads(text)
            settings, results = found["settings"], dict(found["results"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is no file of results; add --fresh to overwrite it, or give another --out."
            ) from error
        if settings != self.content["settings"]:
            named = [
                key
                for key in {**settings, **self.content["settings"]}
                if settings.get(key) != self.content["settings"].get(key)
            ]
            raise UserError(
                f"{self.path} holds results of another {', '.join(named)}; add --fresh to overwrite them, "
                "or give another --out."
            )
        self.content["results"] = results

    @property
    def results(self) -> Dict[str, Any]:
        """Results by the name of their case."""
        return self.content["results"]

    def add(self, name: str, result: Any) -> None:
        """Keeps a result and writes the file, whole or not at all."""
        self.results[name] = result
        self.write()

    def write(self, **more: Any) -> None:
        """Writes the file with ``more`` beside the results."""
        self.content.update(more)
        write_json(self.path, self.content)


def settings_of(device: torch.device, **sizes: Any) -> Dict[str, Any]:
    """What results must share to stand in one file: sizes, commit, host, versions and machine, without any path."""
    found = provenance(Machine(device.type, (0,)), config={})
    del found["config"], found["host"]["location"]
    found["machine"] = {
        "device": device.type,
        "processor": processor(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return {**sizes, **found}


def write_result(path: Path, content: Dict[str, Any]) -> None:
    """Writes what was found on the CPU, with where and with what; makes the folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be made ({error.strerror}); name another file with --json."
        ) from error
    write_json(path, {"settings": settings_of(torch.device("cpu")), **content})


def about(settings: Dict[str, Any]) -> str:
    """One line under a table: where and with what it was measured."""
    machine, commit = settings["machine"], settings["commit"] or "unknown"
    host = settings["host"]
    return (
        f"{machine['processor'] or machine['device']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"torch {settings['versions']['torch']}, solo-learn {host['version']}, commit {commit[:7]}"
    )


def now() -> str:
    """Date and time of a result, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def processor(device: torch.device) -> Optional[str]:
    """The name that the maker gave the processor, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return None
