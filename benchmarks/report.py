"""The report of one results file: goals, tables and a picture, beside the JSON file and renamed into place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.markup import escape

from benchmarks.goals import Goal
from benchmarks.store import Store
from tokensieve.cli.output import new_table, show_table
from tokensieve.measure.plot import MARKERS
from tokensieve.measure.results import DENSE
from tokensieve.methods._spec import parse
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
    for name in ("goal", "needed", "measured", "", "decided by"):
        table.add_column(name, overflow="fold")
    for goal in goals:
        style = {"met": "green", "missed": "red"}.get(goal.verdict, "dim")
        table.add_row(*(escape(text) for text in goal_cells(goal)), style=style)
    show_table(table)


def goal_cells(goal: Goal) -> tuple[str, ...]:
    """Goal, needed, measured, verdict, and the cell that decided."""
    if goal.worst is None:
        return goal.name, _needed(goal), "–", goal.verdict, goal.lacking
    worst, missed = goal.worst, len(goal.missed)
    verdict = goal.verdict + (f" in {missed} of {len(goal.cases)}" if missed else f" in all {len(goal.cases)}")
    return goal.name, _needed(goal), f"{worst.value:.3f}{_mark(worst.noisy)}", verdict, f"{worst.cell} {worst.variant}"


def _needed(goal: Goal) -> str:
    return f"{'≥' if goal.at_least else '≤'} {goal.needed:g}"


def markdown(store: Store, goals: Sequence[Goal]) -> str:
    """The whole report as Markdown."""
    return "\n".join([*_head(store), *_goals(goals), *_cells(store), *_profiles(store)]) + "\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a table."""
    columns = list(columns)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"


def _head(store: Store) -> Iterator[str]:
    here = store.environment
    kernels = "our CPU kernels" if here["cpu_kernels"] else "without our CPU kernels"
    threads = f", {here['threads']} threads, {kernels}" if store.on_cpu else ""
    threads += ", freed memory kept" if here.get("keeps_freed_memory") else ""
    yield from (f"# Speed on {here['device']}, {store.dtype}", "")
    yield f"torch {here['torch']}, timm {here['timm']}, Python {here['python']}{threads}."
    yield f"Written by `python -m benchmarks`; the figures of every round are in `{store.path.name}`. Do not edit."
    yield from ("", WORDS)
    measured = [record for record in store.cells.values() if "failed" not in record]
    for words in sorted({f"Weights: {one['weights']}. Images: {one['images']}." for one in measured}):
        yield from ("", words)


def _goals(goals: Sequence[Goal]) -> Iterator[str]:
    yield from ("", "## Goals", "")
    cells = {goal.name: list(goal_cells(goal)) for goal in goals}
    for goal in goals:
        if goal.missed:
            cells[goal.name][3] = f"**{cells[goal.name][3]}**"
    yield from table(("goal", "needed", "measured, worst", "verdict", "cell"), cells.values())
    missed = [goal for goal in goals if goal.missed]
    if missed:
        yield from ("", "### Missed", "")
    for goal in missed:
        yield f"- **{goal.name}** ({_needed(goal)}):"
        for case in goal.missed[:LISTED]:
            note = f" ({case.note})" if case.note else ""
            yield f"  - {case.value:.3f}{_mark(case.noisy)} {case.cell} `{case.variant}`{note}"
        if len(goal.missed) > LISTED:
            yield f"  - and {len(goal.missed) - LISTED} more"


def _cells(store: Store) -> Iterator[str]:
    for kind, (title, columns) in KINDS.items():
        records = {name: record for name, record in store.cells.items() if record["kind"] == kind}
        if records:
            yield from ("", f"## {title}")
        for name, record in records.items():
            yield from ("", f"### {name.partition('/')[2]}", "")
            if "failed" in record:
                yield f"Not measured: {record['failed']}."
                continue
            rows = [row for row in record["rows"] if kind == "model" or row["variant"] != DENSE]
            yield from table(columns, ([_text(one, row) for one in columns.values()] for row in rows))
            yield from _remarks(record)


def _remarks(record: Record) -> Iterator[str]:
    parts = []
    discarded = max((row.get("discarded", 0) for row in record["rows"]), default=0)
    if discarded:
        parts.append(f"{discarded} set(s) of rounds were discarded because an oracle moved.")
    parts += [f"`{variant}` cannot run here: {why}." for variant, why in record.get("refused", {}).items()]
    if parts:
        yield from ("", " ".join(parts))


def _mark(noisy: bool) -> str:
    return " ~" if noisy else ""


def _text(template: str, row: Record) -> str:
    """A cell of a table; empty where the row has no such figure, as the dense model has none that compare it with
    itself."""
    values = dict(row)
    if "attended" in row:
        first, last = row["attended"][0], min(row["tokens"])
        values["change"] = str(first) if row["variant"] == DENSE else f"{first} → {last}"
    if row["variant"] == DENSE:
        values |= dict.fromkeys(("F", "S", "S_over_F"))
    values["name"] = DENSE if row["variant"] == DENSE else f"`{row['variant']}`"
    values["noisy"] = _mark(row.get("noisy", False))
    values["span"] = "–".join(map(str, row.get("blocks", ())))
    values |= {f"{name}_MB": row[name] / 1e6 for name in ("peak_memory", "attention_map") if name in row}
    values |= {"low_percent": 100 * row["low"]} if "low" in row else {}
    values |= {"block_ms": row["block_seconds"] * 1e3} if "block_seconds" in row else {}
    try:
        return template.format_map(values).replace("%", " %")
    except (KeyError, TypeError):
        return ""


MIDDLE, BLOCK, PEAK = "{low_percent:.1f} to {high:.1%}", "{block_ms:.2f} ms", "{peak_memory_MB:.1f}"
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "model": (
        "Whole models",
        {
            "variant": "{name}",
            "tokens": "{change}",
            "F": "{F:.2f}",
            "S": "{S:.2f} ({S_low:.2f} to {S_high:.2f})",
            "O": "{O:.2f}",
            "S/F": "{S_over_F:.2f}",
            "S/O": "{S_over_O:.3f} ({S_over_O_low:.3f} to {S_over_O_high:.3f})",
            "images/s": "{images_per_second:.1f}{noisy}",
            "peak MB": PEAK,
            "site": "{site_share:.1%}",
        },
    ),
    "operator": (
        "What a method costs next to a dense block",
        {
            "method": "{name}",
            "kind": "{kind}",
            "blocks": "{span}",
            "tokens": "{tokens} → {left}",
            "sites": "{sites}",
            "dense block": BLOCK,
            "a site costs": "{site_share:.1%}{noisy}",
            "middle half": MIDDLE,
        },
    ),
    "selector": (
        "ToSA's selector",
        {
            "method": "{name}",
            "tokens": "{tokens}",
            "stride": "{stride}",
            "dense block": BLOCK,
            "selector": "{share:.1%}{noisy}",
            "middle half": MIDDLE,
            "peak MB": PEAK,
            "one attention map, MB": "{attention_map_MB:.1f}",
        },
    ),
    "reference": (
        "Beside the reference ToMe code",
        {
            "method": "{name}",
            "tokens": "{change}",
            "F": "{F:.2f}",
            "S": "{S:.2f}",
            "O": "{O:.2f}",
            "reference S": "{reference_S:.2f}",
            "explicit S": "{explicit_S:.2f}",
            "over the reference": "{over_reference:.2f} ({low:.2f} to {high:.2f}){noisy}",
            "same groups": "{same_groups:.0%} of {compared} images",
            "logits differ by": "{largest_difference:.1e}",
        },
    ),
    "export": (
        "Exported models",
        {
            "method": "{name}",
            "format": "{format}",
            "F": "{F:.2f}",
            "S/F": "{S_over_F:.2f}",
            "exported S/F": "{exported_S_over_F:.2f}",
            "Scatter": "{scatters}",
            "same tokens": "{same_tokens:.0%}",
        },
    ),
}


def _profiles(store: Store) -> Iterator[str]:
    if store.profiles:
        yield from ("", "## Where the time goes", "")
        yield "Milliseconds of one call under torch.profiler, the shortest of several."
        yield "The profiler slows Python down: read the parts, not the sum."
    for profile in store.profiles:
        yield from ("", f"### {profile['cell'].partition('/')[2]}, {profile['variant']}", "")
        rows = [(name, *profile[name].values(), sum(profile[name].values())) for name in ("dense", "oracle", "reduced")]
        yield from table(("", *profile["dense"], "sum"), ([name, *(f"{v:.2f}" for v in own)] for name, *own in rows))


def plot(store: Store, file: Path) -> None:
    """A panel for each model, size and engine: S against F, oracles hollow, one marker a method, one colour a batch."""
    panels: dict[str, list[tuple[int, Record]]] = {}
    for record in store.cells.values():
        if record["kind"] == "model" and "failed" not in record:
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
    return "+".join(method.name for method in parse(spec))


def _panel(
    axes: Any, title: str, rows: Sequence[tuple[int, Record]], methods: Sequence[str], batches: Sequence[int]
) -> None:
    most = max(max(row["F"], row["O"], row["S"]) for _, row in rows) * 1.05
    axes.plot([1, most], [1, most], color="black", linewidth=0.7, label="S = F")
    axes.axhline(1, color="black", linewidth=0.7, linestyle=":")
    for batch, row in rows:
        name = _names(row["variant"])
        style = {"color": f"C{batches.index(batch) % 10}", "markersize": 7}
        marker = MARKERS[methods.index(name) % len(MARKERS)]
        axes.plot(row["F"], row["S"], marker, label=f"{name}, batch {batch}", **style)
        axes.plot(row["F"], row["O"], marker, fillstyle="none", **style)
    axes.set_title(f"{title} (hollow: oracle)", fontsize=9)
    axes.set(xlabel="F, promised by MACs", ylabel="S, measured")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
