"""Figures and images to pictures that lie inside a page, as PNG or SVG in a data URI.

Figures are made without pyplot, so no window system is asked for and nothing is kept. `new_figure` sets sizes and fonts
that stay readable when a browser makes the picture as narrow as a phone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from dynaclr_wds.pages.markup import Html

_CLIP = (0.5, 99.5)
"""Percentiles of a patch's pixels that become black and white."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Colours of values, told apart by most people who see fewer colours (Okabe and Ito, 2008)."""


def new_figure(width: float = 4.4, height: float = 3.6) -> Figure:
    """Make a figure that draws without a window; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_figure(
    figure: Figure, alt: str, caption: str = "", *, kind: Literal["png", "svg"] = "png", dpi: int = 110
) -> Html:
    """Put a figure into a page.

    Parameters
    ----------
    alt
        What it shows, for readers who can't see it.
    kind
        `svg` is sharp at any size; scatter plots of thousands of points are smaller as `png`.
    """
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(content, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return _picture(content.getvalue(), "image/svg+xml" if kind == "svg" else "image/png", alt, caption)


def show_image(pixels: UInt8[np.ndarray, "y x"] | UInt8[np.ndarray, "y x 3"], alt: str, caption: str = "") -> Html:
    """Put an image into a page, grey or RGB."""
    content = io.BytesIO()
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    imsave(content, rgb, format="png")
    return _picture(content.getvalue(), "image/png", alt, caption)


def show_strip(images: Sequence[UInt8[np.ndarray, "y x"]], captions: Sequence[str], alt: str) -> Html:
    """Put small images side by side, each with a line below it; they go on in the next line where it is narrow.

    Raises
    ------
    ValueError
        There are not as many captions as images.
    """
    each = [show_image(one, f"{alt}: {said}", said) for one, said in zip(images, captions, strict=True)]
    return Html(f'<div class="strip">{"".join(each)}</div>')


def to_grey(
    patch: Float[np.ndarray, "y x"], limits: tuple[float | int, float | int] | None = None
) -> UInt8[np.ndarray, "y x"]:
    """Scale a patch to grey levels; pixels that are not finite become black.

    Parameters
    ----------
    limits
        Values of black and white; None = its own, without the darkest and brightest half percent.
    """
    values = np.where(np.isfinite(patch), patch, np.nanmin(patch) if np.isfinite(patch).any() else 0.0)
    low, high = np.percentile(values, _CLIP) if limits is None else limits
    return (np.clip((values - low) / max(float(high - low), 1e-12), 0, 1) * 255).astype(np.uint8)


def _picture(content: bytes, kind: str, alt: str, caption: str) -> Html:
    data = base64.b64encode(content).decode("ascii")
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img alt="{escape(alt)}" src="data:{kind};base64,{data}">{said}</figure>')


def to_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a figure as RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]
