"""Write the parts of the documentation that the code knows: tables, method cards, command help, measured results.

    python scripts/generate_docs.py            write README.md, docs/methods.md, docs/cli.md, docs/families.md
    python scripts/generate_docs.py --check    write nothing; exit 1 and name what is stale

Sources: the registry (methods and families), the command line itself, docs/families.json (written by
python -m tests.helpers.walk) and benchmarks/results/*.json (written by ``tokensieve bench``).
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from tokensieve.cli.app import app
from tokensieve.engine.composition import conflicts
from tokensieve.families._locate import list_families
from tokensieve.methods import _card as card
from tokensieve.methods import _registry as registry
from tokensieve.methods._method import Method

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by scripts/generate_docs.py; edit the sources it names, then run `make docs`. -->\n\n"
COMPARED = {"gmacs": 3, "top1": 1, "agreement": 1, "kl": 3}  # columns of the comparison and their digits
MACHINE_DEFAULTS = {"workers": "one a core, at most 4"}  # what differs between machines is said in words


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [list(head), ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fill(text: str, name: str, body: str) -> str:
    """``text`` with the part between the markers ``begin NAME`` and ``end NAME`` replaced by ``body``."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"expected the markers {begin!r} and {end!r} once each")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{body.strip()}\n{end}{after}" if body else f"{before}{begin}\n{end}{after}"


# Methods


def paper(cls: type[Method]) -> str:
    """The method's paper as a link, or what it is instead."""
    if cls.paper is None:
        return "none: a control"
    title, authors, year, number = cls.paper
    return f"[{title}]({address(number)}), {authors}, {year}"


def address(number: str) -> str:
    """Where a paper is, by its arXiv number or DOI."""
    return f"https://doi.org/{number}" if "/" in number else f"https://arxiv.org/abs/{number}"


def methods_table() -> str:
    """One row a method, for the README."""
    rows = []
    for name, cls in registry.list_methods().items():
        arxiv = f"[{cls.paper[3]}]({address(cls.paper[3])})" if cls.paper else "control"
        knob = f"`{cls.knob}`" if cls.knob else "–"
        learned = "learned part, to be trained" if cls.trained else "none"
        rows.append(
            [f"[`{name}`](docs/methods.md#{name})", card.summary(cls), card.ACTS[cls.point], knob, learned, arxiv]
        )
    return table(["name", "what it does", "acts", "main option", "learned part", "paper"], rows)


def options_table(cls: type[Method]) -> str:
    """Every option of a method with its type, default and meaning."""
    rows = [
        [f"`{o.name}`", o.type, o.default if o.default == "required" else f"`{o.default}`", o.meaning]
        for o in card.options(cls)
    ]
    return table(["option", "type", "default", "meaning"], rows) if rows else "No options.\n"


def methods_page() -> str:
    """docs/methods.md: every card with its options."""
    parts = [f"# Methods\n\n{NOTICE}One section a method: its card (the docstring of its class) and its options.\n"]
    for name, cls in registry.list_methods().items():
        facts = [
            f"acts {card.ACTS[cls.point]}",
            f"version {cls.version}",
            "has learned parts, which must be trained" if cls.trained else "nothing to train",
        ]
        if cls.ragged:
            facts.append("images may keep different numbers of tokens")
        text = "\n\n".join(card.prose(cls)) + "\n"
        about = f"`ts.{cls.__name__}`: {', '.join(facts)}. Paper: {paper(cls)}.\n"
        parts.append(f"## {name}\n\n{about}\n{text}\n{options_table(cls)}")
    parts.append(compositions())
    return "\n".join(parts)


def compositions() -> str:
    """Which methods compose and why the others do not, as a section of docs/methods.md."""
    known = registry.list_methods()
    ragged = [name for name, cls in known.items() if cls.ragged]
    others = [name for name in known if name not in ragged]
    refused = {pair: reason for pair, reason in conflicts().items() if not set(pair) & set(ragged)}
    against = {name: [other for other in others if {name, other} in map(set, refused)] for name in others}
    rows = []
    for name in sorted(others, key=lambda name: -len(against[name])):
        new = [other for other in against[name] if all(name not in row[1] for row in rows if row[0] == f"`{other}`")]
        if new:
            reason = next(reason for pair, reason in refused.items() if set(pair) == {name, new[0]})
            rows.append([f"`{name}`", ", ".join(f"`{other}`" for other in new), reason])

    def spelled(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    return (
        "## Compositions\n\n`ts.apply(model, [first, second])` and `first+second` on the command line apply several "
        "methods. At their defaults, in a model of 12 blocks, any two of these compose, in both orders: "
        f"{spelled(others)}; save those in the table, which other sites can make fit. These leave another number of "
        "tokens in every image and act alone, because a schedule of shares would depend on the batch: "
        f"{spelled(ragged)}.\n\n" + table(["method", "refused with", "for example because"], rows)
    )


# Families


def families_table() -> str:
    """One row a family, for the README."""
    rows = []
    for name, family in list_families().items():
        blocks = ", ".join(f"`{block}`" for block in family.block_names())
        rows.append([f"`{name}`", family.description, blocks])
    return table(["family", "models", "blocks"], rows)


def walked() -> dict[str, Any] | None:
    """What the walk over timm's model names found, or None where it has not run."""
    source = ROOT / "docs" / "families.json"
    return json.loads(source.read_text(encoding="utf-8")) if source.exists() else None


def by_status(walk: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """(names that are exact, reason → names that are refused)."""
    models: dict[str, dict[str, str]] = walk["models"]
    exact = sorted(name for name, found in models.items() if found["status"] == "exact")
    refused: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(set(models) - set(exact)):
        refused[models[name]["reason"]].append(name)
    return exact, dict(sorted(refused.items(), key=lambda item: (-len(item[1]), item[0])))


def counts() -> str:
    """The two counts the README states."""
    walk = walked()
    if walk is None:
        return ""
    total, exact = len(walk["models"]), len(by_status(walk)[0])
    return (
        f"Of the {total} model names that timm {walk['timm']} lists in these files, **{exact}** are exact (a method "
        f"that removes nothing leaves the output bit-equal; torch {walk['torch']}) and **{total - exact}** are refused "
        "with a reason; [docs/families.md](docs/families.md) names every one.\n"
    )


def families_page() -> str | None:
    """docs/families.md: every walked model name."""
    walk = walked()
    if walk is None:
        return None
    exact, refused = by_status(walk)
    parts = [
        "# Model names\n\n" + NOTICE,
        f"Walked with timm {walk['timm']} and torch {walk['torch']} by `python -m tests.helpers.walk`: every name "
        "is built, small where it allows that, and a method that removes nothing is applied.\n\n",
        f"## Exact: {len(exact)}\n\nThe output is bit-equal to the model's own.\n\n",
        ", ".join(f"`{name}`" for name in exact) + "\n",
        f"\n## Refused: {sum(map(len, refused.values()))}\n",
    ]
    for reason, names in refused.items():
        parts.append(f"\n{reason[:1].upper()}{reason[1:]}:\n" + ", ".join(f"`{name}`" for name in names) + "\n")
    return "".join(parts)


# Commands


def default_of(param: Any) -> str:
    """An option's default as it would be typed; empty for flags that are off and options that have none."""
    if param.name in MACHINE_DEFAULTS:
        return MACHINE_DEFAULTS[param.name]
    value = getattr(param.default, "value", param.default)  # the value of an enumeration
    if value is None or value is False or callable(value) or not str(value) or "UNSET" in repr(value):
        return ""
    return "`" + (",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)) + "`"


def said(text: str | None) -> str:
    """Help text on one line, without the escapes of rich markup."""
    return " ".join((text or "").replace("\\[", "[").split())


def command_section(path: str, command: Any) -> str:
    """One command: what it does, then its arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts and not p.hidden]
    words = {p.name: (p.metavar or p.name.upper()) + ("…" if p.nargs == -1 else "") for p in arguments}
    usage = " ".join([path, *words.values(), *(["[OPTIONS]"] if options else [])])
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", command.help or "")]
    section = f"## {path}\n\n```text\n{usage}\n```\n\n" + "\n\n".join(paragraphs) + "\n"
    rows = [[f"`{words[p.name]}`", said(getattr(p, "help", None)), ""] for p in arguments]
    for option in options:
        flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        rows.append([flags, said(option.help), default_of(option)])
    return section + ("\n" + table(["argument or option", "meaning", "default"], rows) if rows else "")


def commands_page() -> str:
    """docs/cli.md: the help of every command."""
    root: Any = typer.main.get_command(app)
    parts = [f"# Commands\n\n{NOTICE}`tokensieve COMMAND --help` says the same in the terminal.\n"]
    for name, command in sorted(root.commands.items()):
        if getattr(command, "hidden", False):
            continue
        nested = getattr(command, "commands", None)
        for path, leaf in [(f"{name} {sub}", c) for sub, c in sorted(nested.items())] if nested else [(name, command)]:
            parts.append(command_section(f"tokensieve {path}", leaf))
    return "\n".join(parts)


# Results


def number(value: float | None, digits: int) -> str:
    """A measured number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def results_table(measured: dict[str, Any]) -> str:
    """What one run of ``tokensieve bench`` measured: one row a variant."""
    batches = list(dict.fromkeys(speed["batch"] for row in measured["rows"] for speed in row["speed"]))
    head = ["variant", "GMACs", "F", "top-1", "agreement"]
    head += [f"{ratio}, batch {batch}" for batch in batches for ratio in ("S", "S/F", "S/O")]
    rows = []
    for row in measured["rows"]:
        cells = [f"`{row['variant']}`", number(row["gmacs"], 3), number(row["F"], 2)]
        cells += [number(row["top1"], 1), number(row["agreement"], 1)]
        for batch in batches:
            speed: dict[str, Any] = next((s for s in row["speed"] if s["batch"] == batch), {})
            noisy = " ~" if speed.get("noisy") else ""
            cells.append(number(speed.get("S"), 2) + noisy)
            cells += [number(speed.get(ratio), 2) for ratio in ("S_over_F", "S_over_O")]
        rows.append(cells)
    return table(head, rows)


def results() -> str:
    """The README's section of measured results, or nothing where none were recorded."""
    parts = []
    for source in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        measured = json.loads(source.read_text(encoding="utf-8"))
        if not {"rows", "settings", "environment"} <= set(measured) or "left_out" in measured:
            continue  # other files, and comparisons of all methods, which have a page of their own
        if not all("top1" in row for row in measured["rows"]):
            continue  # of a pixel task: docs/pixels.md
        settings, where = measured["settings"], measured["environment"]
        images = max((row["images"] or 0 for row in measured["rows"]), default=0)
        parts.append(
            f"### {settings['model']}\n\n{images} images, {settings['dtype']}, {where['device']}, "
            f"{where['threads']} threads, torch {where['torch']}, timm {where['timm']}; "
            f"all columns: [{source.stem}]({source.relative_to(ROOT).with_suffix('.csv').as_posix()}).\n\n"
            + results_table(measured)
        )
    if not parts:
        return ""
    noisy = "\n~: the rounds lay more than 10 % apart.\n" if any(" ~ |" in part for part in parts) else ""
    return (
        "## Measured\n\nWritten by `tokensieve bench`, with no training of the models. Top-1 and agreement with the "
        "dense model in percent; F, S, S/F and S/O as above.\n\n" + "\n".join(parts) + noisy
    )


def comparison_page() -> str | None:
    """docs/comparison.md: every method at the same MACs, where ``tokensieve eval --method all`` has measured them."""
    parts = []
    for source in sorted((ROOT / "benchmarks" / "results").glob("all-methods-*.json")):
        measured = json.loads(source.read_text(encoding="utf-8"))
        settings, where, rows = measured["settings"], measured["environment"], measured["rows"]
        dense, *reduced = rows
        shares: dict[float, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in reduced:
            shares[round(row["gmacs"] / dense["gmacs"] * 20) / 20].append(row)
        path = source.relative_to(ROOT).with_suffix("")
        parts.append(
            f"## {settings['model']}\n\n{dense['images']} images, {settings['dtype']}, torch {where['torch']}, timm "
            f"{where['timm']}; all columns: [{path.name}.csv](../{path.as_posix()}.csv). The dense model has "
            f"{dense['gmacs']:.3f} GMACs and {dense['top1']:.1f} % top-1. Nothing was trained; what bat and diffrate "
            "were set on is said on their cards. Rows are ordered by KL, the mean divergence from the dense model's "
            f"answers, which is less noisy than accuracy.\n\n![Top-1 against GMACs](../{path.as_posix()}.png)\n"
        )
        for share, group in sorted(shares.items(), reverse=True):
            cells = [
                [f"`{row['variant']}`", *(number(row[key], digits) for key, digits in COMPARED.items())]
                for row in sorted(group, key=lambda row: row["kl"])
            ]
            parts.append(f"### At {share:.0%} of the MACs\n\n" + table(["variant", *COMPARED], cells))
        if measured.get("left_out"):
            cells = [[f"`{name}`", reason] for name, reason in sorted(measured["left_out"].items())]
            parts.append("### Left out\n\n" + table(["method", "because"], cells))
    if not parts:
        return None
    about = (
        "Every method that needs no training, at the same MACs in one run: `tokensieve eval MODEL --method all --macs "
        "0.65`. For each, the option that sets how much it removes is solved for.\n"
    )
    return f"# All methods at the same MACs\n\n{NOTICE}{about}\n" + "\n".join(parts)


def documents() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, body in {
        "methods": methods_table(),
        "families": families_table(),
        "counts": counts(),
        "results": results(),
    }.items():
        readme = fill(readme, name, body)
    pages = {"README.md": readme, "docs/methods.md": methods_page(), "docs/cli.md": commands_page()}
    names = families_page()
    if names is not None:
        pages["docs/families.md"] = names
    comparison = comparison_page()
    if comparison is not None:
        pages["docs/comparison.md"] = comparison
    return {ROOT / name: page for name, page in pages.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check: bool = parser.parse_args().check
    wanted = documents()
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
