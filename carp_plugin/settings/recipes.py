"""Where the recipes lie: in ``scripts/`` of a checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def folder(kind: str) -> Path:
    """The folder of the recipes of a kind.

    Args:
        kind: a folder below ``scripts/``: ``"pretrain"``, ``"linear/photos"``, ``"compare"``.

    Returns:
        Path: absolute. A checkout's own comes first; a wheel brings the same files as ``carp_plugin/scripts``.
    """
    checkout = PACKAGE.parent
    is_checkout = (checkout / "main_pretrain.py").is_file() and (checkout / "scripts").is_dir()
    return (checkout if is_checkout else PACKAGE) / "scripts" / kind
