"""Charts, by matplotlib, which nothing else needs."""

from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from .errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(rows: int, columns: int) -> "Figure":
    """An empty figure of so many charts. Raises InputError where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("charts need matplotlib, which is not here: pip install 'minibaret[plots]'") from None
    made = Figure(figsize=(5 * columns, 3.4 * rows), dpi=120, layout="constrained")
    made.subplots(rows, columns, squeeze=False)
    return made


def picture(drawn: "Figure") -> Image.Image:
    file = BytesIO()
    drawn.savefig(file)
    return Image.open(file).convert("RGB")
