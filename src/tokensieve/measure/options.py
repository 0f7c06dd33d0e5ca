"""What is measured: the options of the commands that compare variants of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokensieve.utils.options import Option


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """The methods that are compared."""

    method: Annotated[
        tuple[str, ...],
        Option(
            "NAME[:option=value[,value…]]…: commas sweep, + composes, brackets make a list; 'all' is every method that "
            "needs no training. Repeatable.",
            names=("--method", "-m"),
            metavar="SPEC",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class OverwriteOptions:
    """Whether files may be replaced."""

    force: Annotated[bool, Option("Overwrite what is there.")] = False


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What variants may cost, and the file of their rows."""

    macs: Annotated[
        tuple[float, ...],
        Option(
            "Turn the knob (keep or r) of every method until it costs this share of the dense MACs. Repeatable.",
            metavar="SHARE",
        ),
    ] = ()
    results_file: Annotated[
        str | None, Option("Where the rows go; CSV and plot are put beside it.", metavar="JSON")
    ] = None
    resume: Annotated[bool, Option("Go on with the results file; what it has is not measured again.")] = False


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How speed is measured."""

    speed_batch_size: Annotated[
        tuple[int, ...], Option("Batch size to time; repeatable. Default: 1 and 16, of answers 1.", min=1)
    ] = ()
    rounds: Annotated[int, Option("Timings of each model.", min=1)] = 10

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes to time, each once."""
        return tuple(dict.fromkeys(self.speed_batch_size or (1, 16)))


RETRIEVAL = "retrieval"
NEIGHBOURS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Among how many neighbours images are looked for."""

    k: Annotated[
        tuple[int, ...],
        Option(
            "Look among the K nearest images; repeatable. Default: 1, 5 and 10.",
            metavar="K",
            min=1,
            panel="Retrieval",
        ),
    ] = ()

    @property
    def neighbours(self) -> tuple[int, ...]:
        """Every K once, the least first."""
        return tuple(sorted(set(self.k or NEIGHBOURS)))
