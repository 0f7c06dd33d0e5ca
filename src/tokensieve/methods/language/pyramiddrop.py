"""PyramidDrop (arXiv 2410.17247): fewer image tokens in each further part of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import kept
from tokensieve.methods.language._decoder import Chosen, DecoderMethod, DecoderView, highest, last_row


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(DecoderMethod):
    """Behind several layers of the decoder keep a share of the image tokens, by the last token's attention to them.

    Options:
        keep: share of the image tokens left behind each site, of those there were behind the one before; one number
            for all sites or one for each. Published: 0.5.
        sites: 1-based numbers of the layers behind which it acts; default a quarter, a half and three quarters of the
            depth, which are 8, 16 and 24 of 32 as published.
    """

    keep: float | tuple[float, ...] = 0.5
    sites: tuple[int, ...] | None = None

    paper = (
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        "Xing et al.",
        2024,
        "2410.17247",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(bool(shares) and all(0 < share <= 1 for share in shares), self, "keep", "a share in (0, 1]")
        require(self.sites is None or all(site >= 1 for site in self.sites), self, "sites", "layers from 1 on")

    def layers(self, depth: int) -> tuple[int, ...]:
        given = self.sites
        sites = tuple(site - 1 for site in given) if given is not None else _quarters(depth)
        if isinstance(self.keep, tuple) and len(self.keep) != len(sites):
            raise TokensieveError(
                f"{self.name}: keep has {len(self.keep)} shares for {len(sites)} sites: give one number or one for each"
            )
        return sites

    def remaining(self, tokens: int, site: int) -> int:
        left = tokens
        for number in range(site + 1):
            left = kept(left, self.keep[number] if isinstance(self.keep, tuple) else self.keep)
        return left

    def choose(self, view: DecoderView) -> Chosen:
        return Chosen(highest(last_row(view), view.count))


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3)}))
