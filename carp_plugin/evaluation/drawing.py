"""How pictures are drawn and written: styles, SVG for the page of a comparison, PNG for a README, PDF for a paper.

Every picture is small enough for a telephone, so a page sets them side by side instead of shrinking a large one. The
same results give the same bytes. In an SVG the colours are CSS variables with the printed colour as their fallback:
a page can change them for a dark background, and alone the picture looks as it does on paper.
"""

from __future__ import annotations

import colorsys
import html
import io
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

#: Okabe and Ito's colours without black and yellow: apart for every kind of colour vision. In grey, markers tell.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, GRID, PAPER = "#1b1b1c", "#d3d3d4", "#fefefe"
WIDTH = 4.6  # inches: what a telephone shows without shrinking letters below 9 px
_LONGEST = 22  # characters of a name inside a picture; the table has it in full


class Picture(NamedTuple):
    """A finished picture.

    Attributes:
        name: of its file, without an ending.
        alt: what is seen, for those who do not see it.
        figure: matplotlib's.
    """

    name: str
    alt: str
    figure: Figure


@contextmanager
def drawing() -> Iterator[None]:
    """Settings of all pictures, and nothing left behind: `$` in a name is a dollar sign, not a formula."""
    settings: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "carp_plugin",
        "pdf.fonttype": 42,  # TrueType; publishers refuse the default, Type 3
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.facecolor": "none",
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the drawing font lacks; the browser has another font.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def canvas(
    height: float, width: float = WIDTH, rows: int = 1, columns: int = 1
) -> Tuple[Figure, List[Axes]]:
    """A figure of equal axes, row by row; ``height`` and ``width`` are those of one of them, in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def short(name: str) -> str:
    """A name that fits; matplotlib hides those that begin with an underscore from legends."""
    name = " ".join(name.split())
    if len(name) > _LONGEST:  # both ends, for names of one family differ at either
        name = f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 + 1 :]}"
    return " " + name if name.startswith("_") else name


def styles(labels: Sequence[str]) -> Dict[str, Dict[str, Any]]:
    """Colour and marker of each label."""
    return {
        label: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(labels)
    }


def colours(count: int) -> List[str]:
    """A colour of its own for each of ``count`` things, as ``"#rrggbb"``.

    The palette while it lasts; beyond it hues at equal distances, whose lightness alternates so that neighbours differ.
    """
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    lightness = (0.36, 0.52, 0.68)
    return [
        to_hex(colorsys.hls_to_rgb(i / count, lightness[i % len(lightness)], 0.75))
        for i in range(count)
    ]


def svg(picture: Picture) -> str:
    """A picture as an SVG element that can stand inside a page, as wide as there is room.

    Args:
        picture: any of this module's.

    Returns:
        str: from ``<svg`` to ``</svg>``; its ids begin with the picture's name, its colours are CSS variables
        ``--ink``, ``--grid``, ``--paper`` and ``--c0`` … with a fallback, its text is text.
    """
    file = io.StringIO()
    with drawing():
        picture.figure.set_facecolor("none")
        FigureCanvasSVG(picture.figure).print_svg(
            file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    prefix = re.sub("[^0-9A-Za-z_-]", "-", picture.name)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    colours = {
        INK: "ink",
        GRID: "grid",
        PAPER: "paper",
        **{c: f"c{i}" for i, c in enumerate(PALETTE)},
    }
    for colour, variable in colours.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    size = 'width="[^"]+" height="[^"]+" '
    alt = html.escape(picture.alt)
    width = picture.figure.get_figwidth() * 96
    text = re.sub(size, "", text, count=1).replace(
        "<svg ", f'<svg role="img" aria-label="{alt}" style="max-width: {width:.0f}px" ', 1
    )
    return text


def write_png(picture: Picture, folder: Path, dpi: int = 160) -> Path:
    """Writes a picture on white to ``folder/NAME.png``, for a README.

    Args:
        picture: any of this module's.
        folder: exists already.
        dpi: dots an inch.
    """
    path = folder / f"{picture.name}.png"
    with drawing():
        picture.figure.set_facecolor("white")
        picture.figure.set_dpi(dpi)
        FigureCanvasAgg(picture.figure).print_png(str(path), metadata={"Software": None})
    return path


def write_pdf(picture: Picture, folder: Path) -> Path:
    """Writes a picture on white to ``folder/NAME.pdf``, for a paper.

    Args:
        picture: any of this module's.
        folder: exists already.
    """
    path = folder / f"{picture.name}.pdf"
    with drawing():
        picture.figure.set_facecolor("white")
        FigureCanvasPdf(picture.figure).print_pdf(
            str(path), metadata={"CreationDate": None, "Creator": None, "Producer": None}
        )
    return path
