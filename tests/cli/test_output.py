"""Tables that fit a terminal of 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tokensieve.cli.output import accuracy_table, speed_table
from tokensieve.measure.results import DENSE, Row, Speed

SPEC = "tome:r=4+tosa:keep=0.5"


def rows() -> list[Row]:
    speed = Speed(16, 1234.5, 1000.0, 2000.0, 1.23, 1.45, 0.9, 0.95, 123_456_789, noisy=True)
    return [Row(name, 12.345, 1.55, 1000, 80.12, 95.1, 100.0, 0.1234, [speed]) for name in (DENSE, SPEC)]


def lines(table: Table) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_tables_fit_and_keep_variants_readable() -> None:
    for table in (accuracy_table(rows(), "a model"), speed_table(rows(), 16)):
        drawn = lines(table)
        assert all(len(line) <= 80 for line in drawn)
        assert any(SPEC in line for line in drawn)


def test_the_ratios_are_explained_and_noise_is_marked() -> None:
    drawn = " ".join(lines(speed_table(rows(), 16)))
    assert "S speed-up over dense" in drawn
    assert "1234.5 ~" in drawn and "~ noisy" in drawn
    assert "~ noisy" not in " ".join(lines(speed_table([], 16)))
