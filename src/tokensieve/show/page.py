"""Rows of panels as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.show import draw, text
from tokensieve.show.maps import Row, SiteMap

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f26; --grey: #68707c; --line: #e2e6ec; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #eceff4; --grey: #9aa3b0; --line: #333944; --paper: #15181d } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem); max-width: 120rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0 0 2rem }
section { margin: 0 0 2.5rem }
h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere }
p { margin: .15rem 0 .8rem; color: var(--grey) }
p.caption { margin: .8rem 0 0; color: var(--ink) }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1.25rem }
figure { margin: 0; display: flex; flex-direction: column }
figure header { display: flex; justify-content: space-between; gap: .5rem; margin-bottom: .3rem; flex-wrap: wrap }
figure img { width: 100%; height: auto; display: block; border-radius: 2px }
figcaption { margin-top: .3rem; color: var(--grey); font-size: .88rem }
.soft { display: grid; place-items: center; background: var(--line); color: var(--grey); padding: 1rem;
  text-align: center }
footer { display: flex; flex-wrap: wrap; gap: .8rem 2rem; border-top: 1px solid var(--line); padding-top: 1.2rem;
  color: var(--grey) }
footer span { display: flex; align-items: center; gap: .6rem }
footer img { width: 34px; height: 34px; border-radius: 2px }
"""


def page(rows: Sequence[Row], title: str) -> str:
    """A whole HTML document; every picture is inside it.

    Args:
        rows: what to show, in order.
        title: the page's heading.
    """
    legend = "".join(
        f"<span>{_image(_small(text.legend_swatch(state)), '')}{escape(words)}</span>" for state, words in text.LEGEND
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(_section(row) for row in rows)
        + f"\n<footer>{legend}</footer>\n</body>\n</html>\n"
    )


def _section(row: Row) -> str:
    about = " · ".join(part for part in (row.image, text.row_note(row)) if part)
    picture = _image(draw.fit(row.picture, row.grid), row.image)
    figures = [_figure("what the model sees", "", picture, "")]
    figures += [
        _figure(panel.title, "", _image(draw.fit(panel.picture, row.grid), panel.title), panel.note)
        for panel in row.panels
    ]
    figures += [_site(row, site) for site in row.maps]
    if row.tokens:
        chart = np.asarray(draw.token_chart(row.tokens, row.dense, draw.panel_size(row.grid)))
        drawing = _image(chart, "tokens attended in each block", sharp=True)
        figures.append(_figure(text.chart_title(row), "", drawing, text.chart_note(row)))
    caption = "".join(f'\n<p class="caption">{escape(line)}</p>' for line in row.caption.splitlines())
    panels = "\n".join(figures)
    return (
        f"<section>\n<h2>{escape(row.method)}</h2>\n<p>{escape(about)}</p>\n"
        f'<div class="panels">\n{panels}\n</div>{caption}\n</section>'
    )


def _site(row: Row, site: SiteMap) -> str:
    heading = f"<b>{escape(text.site_title(row, site))}</b>"
    counts = escape(text.site_counts(site))
    if site.state is None:
        width, height = draw.panel_size(row.grid)
        drawing = f'<div class="soft" style="aspect-ratio: {width} / {height}">{escape(site.describe())}</div>'
        return _figure(heading, counts, drawing, "", raw=True)
    alt = f"{text.site_title(row, site)}: {site.describe()}"
    return _figure(heading, counts, _image(draw.site_panel(row.picture, site), alt), site.describe(), raw=True)


def _figure(heading: str, counts: str, drawing: str, caption: str, raw: bool = False) -> str:
    words = heading if raw else escape(heading)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><header><span>{words}</span><span>{counts}</span></header>{drawing}{below}</figure>"


def _small(swatch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(swatch).resize((68, 68), Image.Resampling.LANCZOS))


def _image(pixels: NDArray[np.uint8], alt: str, sharp: bool = False) -> str:
    kind = "png" if sharp else "jpeg"
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, **({"optimize": True} if sharp else {"quality": 90, "subsampling": 0}))
    data = base64.b64encode(held.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
