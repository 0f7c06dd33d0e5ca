"""PyramidDrop (arXiv 2410.17247): fewer image tokens in each further part of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods.language._decoder import Chosen, DecoderView, SeveralLayers, highest, last_row


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(SeveralLayers):
    """Behind several layers of the decoder keep a share of the image tokens, by the last token's attention to them.

    Options:
        keep: share of the image tokens left behind each site, of those there were behind the one before; one number
            for all sites or one for each. Published: 0.5.
        sites: 1-based numbers of the layers behind which it acts; default a quarter, a half and three quarters of the
            depth, which are 8, 16 and 24 of 32 as published.
    """

    keep: float | tuple[float, ...] = 0.5

    paper = (
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        "Xing et al.",
        2024,
        "2410.17247",
    )

    def published(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3)}))

    def left(self, tokens: int, site: int) -> int:
        return self.share_kept(tokens, site)

    def choose(self, view: DecoderView) -> Chosen:
        return Chosen(highest(last_row(view), view.count))
