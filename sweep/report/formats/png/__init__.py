"""The page's main charts as pictures for a paper or a slide: PNG files, 1,500 pixels wide.

    sheet      a figure, its head and notes, and texts that fit     ranking   quality with intervals, a row a line
    pareto     quality against trainable parameters                 effects   what each setting changes
    losses     the training losses

They draw ``page_data``'s numbers and compute none. Everything is placed in inches, since a label can hold anything and
be of any length: what does not fit is cut before it is drawn.
"""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lora_sweep.runs.files import write_atomic
from sweep.report.formats.png.effects import effects
from sweep.report.formats.png.losses import losses
from sweep.report.formats.png.pareto import pareto
from sweep.report.formats.png.ranking import ranking
from sweep.report.formats.png.sheet import STYLE, Json

__all__ = ["write_pngs"]

CHARTS = {"ranking.png": ranking, "pareto.png": pareto, "effects.png": effects, "losses.png": losses}


def write_pngs(data: Json, folder: Path) -> list[Path]:
    """Write each chart that has something to show; the same data give the same bytes.

    Args:
        data: what ``page_data`` gives.

    Returns:
        The charts' files. The file of a chart that has nothing to show any more is deleted.
    """
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc changes no byte
        matplotlib.rcParams.update(STYLE)
        for name, draw in CHARTS.items():
            path, figure = folder / name, draw(data)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            content = png(figure)
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)
            written.append(path)
    return written


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
