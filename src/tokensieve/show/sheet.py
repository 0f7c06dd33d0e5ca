"""Rows of panels as one picture: a line for each image and method, the sites side by side, the legend at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from tokensieve.errors import TokensieveError
from tokensieve.show import draw, text
from tokensieve.show.maps import Row, SiteMap

MARGIN, GUTTER, ROW_GAP = 56, 32, 64
HEADING, TITLE, BODY = 32, 25, 22
LINE = 1.35
INK, GREY, FAINT = (28, 31, 38), (104, 112, 124), (226, 230, 236)
CHART_WIDTH = 300
TALLEST = 32_000


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(wanted), size)


def wrapped(words: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """``words`` in lines of at most ``width`` pixels; a word longer than that is cut with an ellipsis."""
    lines = [""]
    for word in words.split():
        while len(word) > 1 and font.getlength(word) > width:
            word = word.removesuffix("…")[:-1] + "…"
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows as one RGB picture on white.

    Raises:
        TokensieveError: so many rows that the picture could not be opened; an HTML page holds them.
    """
    width = MARGIN * 2 + max(_row_width(row) for row in rows)
    heights = [_draw_row(None, row, 0, width) for row in rows]
    legend = _legend(None, 0, width)
    height = MARGIN * 2 + sum(heights) + ROW_GAP * len(rows) + legend
    if height > TALLEST:
        raise TokensieveError(
            f"{len(rows)} rows are too many for one picture: give fewer images or methods, or write an HTML page "
            f"with --output NAME.html"
        )
    canvas = Image.new("RGB", (width, height), "white")
    top = MARGIN
    for row, tall in zip(rows, heights, strict=True):
        _draw_row(canvas, row, top, width)
        top += tall + ROW_GAP
    _legend(canvas, top, width)
    return canvas


def _row_width(row: Row) -> int:
    panel = draw.panel_size(row.grid)[0]
    chart = GUTTER + CHART_WIDTH if row.tokens else 0
    pictures = len(row.panels) + len(row.maps)
    return (1 + pictures) * panel + pictures * GUTTER + chart


class _Pen:
    """Writes lines of text, or only measures them when there is no canvas."""

    def __init__(self, canvas: Image.Image | None) -> None:
        self.canvas = canvas
        self.pen = ImageDraw.Draw(canvas) if canvas else None

    def write(
        self, x: int, y: int, words: str, size: int, width: int, colour: draw.RGB = INK, bold: bool = False
    ) -> int:
        """Write ``words`` in at most ``width`` pixels a line; returns the y below."""
        font = _font(size, bold)
        step = round(size * LINE)
        for line in wrapped(words, font, width):
            if self.pen:
                self.pen.text((x, y), line, fill=colour, font=font)
            y += step
        return y

    def right(self, x: int, y: int, words: str, size: int, colour: draw.RGB = INK) -> int:
        """Write ``words`` ending at ``x``; returns where they start."""
        font = _font(size)
        start = x - round(font.getlength(words))
        if self.pen:
            self.pen.text((start, y), words, fill=colour, font=font)
        return start

    def paste(self, picture: Image.Image, x: int, y: int) -> None:
        if self.canvas:
            self.canvas.paste(picture, (x, y), picture if picture.mode == "RGBA" else None)


def _draw_row(canvas: Image.Image | None, row: Row, top: int, width: int) -> int:
    """Draw a row at ``top``, or measure it when there is no canvas; returns its height."""
    pen = _Pen(canvas)
    inner = width - 2 * MARGIN
    y = pen.write(MARGIN, top, row.method, HEADING, inner, bold=True)
    about = " · ".join(part for part in (row.image, text.row_note(row)) if part)
    y = pen.write(MARGIN, y, about, BODY, inner, GREY) + 14
    panel_width, panel_height = draw.panel_size(row.grid)
    stacked = any(_too_wide(row, site, panel_width) for site in row.maps)
    head = round(TITLE * LINE) * (2 if stacked else 1) + 8
    x, bottom = MARGIN, y + head + panel_height
    picture_at = y + head
    pen.write(x, picture_at - 8 - round(TITLE * LINE), "what the model sees", TITLE, panel_width)
    pen.paste(Image.fromarray(draw.fit(row.picture, row.grid)), x, picture_at)
    for panel in row.panels:
        x += panel_width + GUTTER
        pen.write(x, picture_at - 8 - round(TITLE * LINE), panel.title, TITLE, panel_width, bold=True)
        pen.paste(Image.fromarray(draw.fit(panel.picture, row.grid)), x, picture_at)
        below = picture_at + panel_height + 8
        bottom = max(bottom, pen.write(x, below, panel.note, BODY, panel_width, GREY))
    for site in row.maps:
        x += panel_width + GUTTER
        bottom = max(bottom, _draw_site(pen, row, site, x, picture_at, stacked))
    if row.tokens:
        x += panel_width + GUTTER
        bottom = max(bottom, _draw_chart(pen, row, x, picture_at, panel_height))
    if row.caption:
        for line in row.caption.splitlines():
            bottom = pen.write(MARGIN, bottom + 12, line, TITLE, inner)
    return bottom - top


def _too_wide(row: Row, site: SiteMap, panel_width: int) -> bool:
    """Whether title and counts of a panel need a line each."""
    title = _font(TITLE, bold=True).getlength(text.site_title(row, site))
    return title + _font(TITLE).getlength(text.site_counts(site)) + 20 > panel_width


def _draw_site(pen: _Pen, row: Row, site: SiteMap, x: int, y: int, stacked: bool) -> int:
    panel_width, panel_height = draw.panel_size(row.grid)
    step = round(TITLE * LINE)
    if stacked:
        pen.write(x, y - 8 - 2 * step, text.site_title(row, site), TITLE, panel_width, bold=True)
        pen.write(x, y - 8 - step, text.site_counts(site), TITLE, panel_width)
    else:
        pen.write(x, y - 8 - step, text.site_title(row, site), TITLE, panel_width, bold=True)
        pen.right(x + panel_width, y - 8 - step, text.site_counts(site), TITLE)
    if site.state is None:
        pen.paste(Image.new("RGB", (panel_width, panel_height), FAINT), x, y)
        pen.write(x + 24, y + panel_height // 2 - BODY, site.describe(), BODY, panel_width - 48, GREY)
        return y + panel_height
    pen.paste(Image.fromarray(draw.site_panel(row.picture, site)), x, y)
    return pen.write(x, y + panel_height + 8, site.describe(), BODY, panel_width, GREY)


def _draw_chart(pen: _Pen, row: Row, x: int, y: int, height: int) -> int:
    pen.write(x, y - 8 - round(TITLE * LINE), text.chart_title(row), TITLE, CHART_WIDTH)
    pen.paste(draw.token_chart(row.tokens, row.dense, (CHART_WIDTH, height)), x, y)
    return pen.write(x, y + height + 8, text.chart_note(row), BODY, CHART_WIDTH, GREY)


def _legend(canvas: Image.Image | None, top: int, width: int) -> int:
    """Draw or measure the legend: swatches with words, on as many lines as the width needs."""
    pen = _Pen(canvas)
    side, pad, step = 40, 14, 40
    if canvas:
        ImageDraw.Draw(canvas).line((MARGIN, top, width - MARGIN, top), fill=FAINT, width=2)
    x, y = MARGIN, top + 28
    for state, words in text.LEGEND:
        needed = side + pad + round(_font(BODY).getlength(words))
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + side + 16
        swatch = Image.fromarray(text.legend_swatch(state)).resize((side, side), Image.Resampling.LANCZOS)
        pen.paste(swatch, x, y)
        pen.write(x + side + pad, y + (side - round(BODY * LINE)) // 2 + 1, words, BODY, width, GREY)
        x += needed + step
    return y + side - top
