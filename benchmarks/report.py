"""The report of one results file: goals, tables and a picture, beside the JSON file and renamed into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.markup import escape

import tokensieve as ts
from goals import Goal
from store import Store
from tokensieve.cli.output import new_table, show_table
from tokensieve.measure.plot import MARKERS
from tokensieve.measure.results import DENSE
from tokensieve.utils.files import replacing

Record = Mapping[str, Any]
WORDS = """S: measured speed-up over the dense model in the same run. F: what the MACs promise. O: the oracle's speed-up
(the same token counts, a selection that costs nothing). Medians of interleaved rounds; in brackets the middle half of
the rounds. Site: what one site costs on top of the oracle, as a share of a dense block. ~ marks noisy rounds: more than
10 % apart, or an oracle that moved every time."""
LISTED = 12  # missed cases named one by one for each goal


def write_report(store: Store, goals: Sequence[Goal]) -> None:
    """Write the Markdown and the PNG of ``store`` beside its JSON file."""
    with replacing(store.path.with_suffix(".md")) as beside:
        beside.write_text(markdown(store, goals), encoding="utf-8")
    plot(store, store.path.with_suffix(".png"))


def print_goals(goals: Sequence[Goal], title: str) -> None:
    """The table of goals on standard output."""
    table = new_table(title)
    for name in ("goal", "what", "needed", "measured", "", "decided by"):
        table.add_column(name, overflow="fold")
    for goal in goals:
        style = {"met": "green", "missed": "red"}.get(goal.verdict, "dim")
        table.add_row(*(escape(text) for text in goal_cells(goal)), style=style)
    show_table(table)


def goal_cells(goal: Goal) -> tuple[str, ...]:
    """Goal, what, needed, measured, verdict, and the cell that decided."""
    needed = f"{'≥' if goal.at_least else '≤'} {goal.needed:g}"
    if goal.worst is None:
        return goal.name, goal.what, needed, "–", goal.verdict, goal.lacking
    worst, missed = goal.worst, len(goal.missed)
    verdict = goal.verdict + (f" in {missed} of {len(goal.cases)}" if missed else f" in all {len(goal.cases)}")
    return (
        goal.name,
        goal.what,
        needed,
        f"{worst.value:.3f}{_mark(worst.noisy)}",
        verdict,
        f"{worst.cell} {worst.variant}",
    )


def markdown(store: Store, goals: Sequence[Goal]) -> str:
    """The whole report as Markdown."""
    return "\n".join([*_head(store), *_goals(goals), *_cells(store), *_profiles(store)]) + "\n"


def _head(store: Store) -> Iterator[str]:
    here = store.environment
    yield f"# Speed on {here['device']}, {store.dtype}"
    yield ""
    kernels = "our CPU kernels" if here["cpu_kernels"] else "without our CPU kernels"
    threads = f", {here['threads']} threads, {kernels}" if store.on_cpu else ""
    threads += ", freed memory kept" if here.get("keeps_freed_memory") else ""
    yield f"torch {here['torch']}, timm {here['timm']}, Python {here['python']}{threads}."
    yield f"Written by `benchmarks/run.py`; the figures of every round are in `{store.path.name}`. Do not edit."
    yield from ("", WORDS)
    for words in sorted({_told(record) for record in store.cells.values() if "failed" not in record}):
        yield ""
        yield words


def _told(record: Record) -> str:
    return f"Weights: {record['weights']}. Images: {record['images']}."


def _goals(goals: Sequence[Goal]) -> Iterator[str]:
    yield from ("", "## Goals", "")
    yield from _table(
        ("goal", "what", "needed", "measured, worst", "verdict", "cell"),
        (
            [*goal_cells(goal)[:4], _bold(goal_cells(goal)[4], goal.verdict == "missed"), goal_cells(goal)[5]]
            for goal in goals
        ),
    )
    missed = [goal for goal in goals if goal.missed]
    if missed:
        yield from ("", "### Missed", "")
    for goal in missed:
        yield f"- **{goal.name}** {goal.what} ({'≥' if goal.at_least else '≤'} {goal.needed:g}):"
        for case in goal.missed[:LISTED]:
            note = f" ({case.note})" if case.note else ""
            yield f"  - {case.value:.3f}{_mark(case.noisy)} {case.cell} `{case.variant}`{note}"
        if len(goal.missed) > LISTED:
            yield f"  - and {len(goal.missed) - LISTED} more"


def _cells(store: Store) -> Iterator[str]:
    writers = {
        "model": _model,
        "operator": _operator,
        "selector": _selector,
        "reference": _reference,
        "export": _export,
    }
    titles = {
        "model": "Whole models",
        "operator": "What a method costs next to a dense block",
        "selector": "ToSA's selector",
        "reference": "Beside the reference ToMe code",
        "export": "Exported models",
    }
    for kind, writer in writers.items():
        records = {name: record for name, record in store.cells.items() if record["kind"] == kind}
        if records:
            yield from ("", f"## {titles[kind]}")
        for name, record in records.items():
            yield from ("", f"### {name.partition('/')[2]}", "")
            if "failed" in record:
                yield f"Not measured: {record['failed']}."
                continue
            yield from writer(record)
            yield from _remarks(record)


def _remarks(record: Record) -> Iterator[str]:
    parts = []
    discarded = max((row.get("discarded", 0) for row in record["rows"]), default=0)
    if discarded:
        parts.append(f"{discarded} set(s) of rounds were discarded because an oracle moved.")
    for variant, reason in record.get("refused", {}).items():
        parts.append(f"`{variant}` cannot run here: {reason}.")
    if parts:
        yield from ("", " ".join(parts))


def _model(record: Record) -> Iterator[str]:
    columns = ("variant", "tokens", "F", "S", "O", "S/F", "S/O", "images/s", "peak MB", "site")
    yield from _table(columns, (_model_cells(row) for row in record["rows"]))


def _model_cells(row: Record) -> list[str]:
    tokens = f"{row['attended'][0]} → {min(row['tokens'])}"
    rate = f"{row['images_per_second']:.1f}{_mark(row['noisy'])}"
    if row["variant"] == DENSE:
        return [DENSE, str(row["attended"][0]), "", "", "", "", "", rate, f"{row['peak_memory'] / 1e6:.1f}", ""]
    return [
        f"`{row['variant']}`",
        tokens,
        f"{row['F']:.2f}",
        f"{row['S']:.2f} ({row['S_low']:.2f} to {row['S_high']:.2f})",
        f"{row['O']:.2f}",
        f"{row['S_over_F']:.2f}",
        f"{row['S_over_O']:.3f} ({row['S_over_O_low']:.3f} to {row['S_over_O_high']:.3f})",
        rate,
        f"{row['peak_memory'] / 1e6:.1f}",
        "" if row["site_share"] is None else f"{100 * row['site_share']:.1f} %",
    ]


def _operator(record: Record) -> Iterator[str]:
    columns = ("method", "kind", "blocks", "tokens", "sites", "dense block", "a site costs", "middle half")
    yield from _table(
        columns,
        (
            [
                f"`{row['variant']}`",
                row["kind"],
                "–".join(map(str, row["blocks"])),
                f"{row['tokens']} → {row['left']}",
                str(row["sites"]),
                f"{1e3 * row['block_seconds']:.2f} ms",
                f"{100 * row['site_share']:.1f} %{_mark(row['noisy'])}",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
            ]
            for row in record["rows"]
        ),
    )


def _selector(record: Record) -> Iterator[str]:
    columns = (
        "method",
        "tokens",
        "stride",
        "dense block",
        "selector",
        "middle half",
        "peak MB",
        "one attention map, MB",
    )
    yield from _table(
        columns,
        (
            [
                f"`{row['variant']}`",
                str(row["tokens"]),
                str(row["stride"]),
                f"{1e3 * row['block_seconds']:.2f} ms",
                f"{100 * row['share']:.1f} %{_mark(row['noisy'])}",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
                f"{row['peak_memory'] / 1e6:.1f}",
                f"{row['attention_map'] / 1e6:.1f}",
            ]
            for row in record["rows"]
        ),
    )


def _reference(record: Record) -> Iterator[str]:
    columns = (
        "method",
        "tokens",
        "F",
        "S",
        "O",
        "reference S",
        "over the reference",
        "same groups",
        "logits differ by",
    )
    yield from _table(
        columns,
        (
            [
                f"`{row['variant']}`",
                f"{row['attended'][0]} → {min(row['tokens'])}",
                f"{row['F']:.2f}",
                f"{row['S']:.2f}",
                f"{row['O']:.2f}",
                f"{row['reference_S']:.2f}",
                f"{row['explicit_S']:.2f}",
                f"{row['over_reference']:.2f} ({row['low']:.2f} to {row['high']:.2f}){_mark(row['noisy'])}",
                f"{100 * row['same_groups']:.0f} % of {row['compared']} images",
                f"{row['largest_difference']:.1e}",
            ]
            for row in record["rows"]
            if row["variant"] != DENSE
        ),
    )


def _export(record: Record) -> Iterator[str]:
    columns = ("method", "format", "F", "S/F", "exported S/F", "Scatter", "same tokens")
    yield from _table(
        columns,
        (
            [
                f"`{row['variant']}`",
                row["format"],
                f"{row['F']:.2f}",
                f"{row['S_over_F']:.2f}",
                f"{row['exported_S_over_F']:.2f}",
                str(row["scatters"]),
                f"{100 * row['same_tokens']:.0f} %",
            ]
            for row in record["rows"]
        ),
    )


def _profiles(store: Store) -> Iterator[str]:
    if not store.profiles:
        return
    yield from ("", "## Where the time goes", "")
    yield "Milliseconds of one call under torch.profiler, the shortest of several."
    yield "The profiler slows Python down: read the parts, not the sum."
    for profile in store.profiles:
        yield from ("", f"### {profile['cell'].partition('/')[2]}, {profile['variant']}", "")
        groups = list(profile["dense"])
        rows = []
        for name in ("dense", "oracle", "reduced"):
            parts = profile[name]
            rows.append([name, *(f"{parts[group]:.2f}" for group in groups), f"{sum(parts.values()):.2f}"])
        yield from _table(("", *groups, "sum"), rows)


def _table(columns: Sequence[str], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"


def _mark(noisy: bool) -> str:
    return " ~" if noisy else ""


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def plot(store: Store, file: Path) -> None:
    """A panel for each model, size and engine: S against F, oracles hollow, one marker a method, one colour a batch."""
    panels: dict[str, list[tuple[int, Record]]] = {}
    for record in store.cells.values():
        if record["kind"] != "model" or "failed" in record:
            continue
        s = record["setting"]
        rows = [(s["batch"], row) for row in record["rows"] if row["variant"] != DENSE]
        panels.setdefault(f"{s['model']}, {s['img_size']} px, {s['engine']}", []).extend(rows)
    columns = min(3, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5 * columns + 2, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    methods = list(dict.fromkeys(_names(row["variant"]) for rows in panels.values() for _, row in rows))
    batches = sorted({batch for rows in panels.values() for batch, _ in rows})
    for place, (title, rows) in zip(axes, panels.items(), strict=False):
        _panel(place, title, rows, methods, batches)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    labels = dict(entry for place in axes for entry in zip(*reversed(place.get_legend_handles_labels()), strict=True))
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{store.environment['device']}, {store.dtype}, torch {store.environment['torch']}", fontsize=11)
    with replacing(file) as beside:
        figure.savefig(beside, dpi=130, format="png")


def _names(spec: str) -> str:
    return "+".join(method.name for method in ts.parse(spec))


def _panel(
    axes: Any, title: str, rows: Sequence[tuple[int, Record]], methods: Sequence[str], batches: Sequence[int]
) -> None:
    most = max(max(row["F"], row["O"], row["S"]) for _, row in rows) * 1.05
    axes.plot([1, most], [1, most], color="black", linewidth=0.7, label="S = F")
    axes.axhline(1, color="black", linewidth=0.7, linestyle=":")
    for batch, row in rows:
        name = _names(row["variant"])
        marker, color = MARKERS[methods.index(name) % len(MARKERS)], f"C{batches.index(batch) % 10}"
        axes.plot(row["F"], row["S"], marker, color=color, markersize=7, label=f"{name}, batch {batch}")
        axes.plot(row["F"], row["O"], marker, color=color, markersize=7, fillstyle="none")
    axes.set_title(f"{title} (hollow: oracle)", fontsize=9)
    axes.set_xlabel("F, promised by MACs")
    axes.set_ylabel("S, measured")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
