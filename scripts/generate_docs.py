"""Write the parts of the documentation that the code knows: tables, method cards, command help, measured results.

    python scripts/generate_docs.py            write the marked parts of README.md, and the pages below docs/
    python scripts/generate_docs.py --check    write nothing; exit 1 and name what is stale

The pages are methods.md, language.md, cli.md, families.md, results.md and comparison.md. Prose is wrapped at 120
characters.

Sources: the registry (methods and families), the command line itself, docs/families.json, docs/towers.json and
docs/language_hosts.json (written by python -m tests.helpers.walk, walk_towers and walk_language) and
benchmarks/results/*.json (written by ``tokensieve bench``).
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import typer

from docs_hosts import count_of_hosts, walked_hosts
from docs_language import language_page
from docs_results import comparison_page, results, results_page
from docs_text import NOTICE, ROOT, fill, listed, table, wrap, write_or_check
from tokensieve.cli.app import app
from tokensieve.engine.composition import conflicts
from tokensieve.families._locate import list_families
from tokensieve.methods import _card as card
from tokensieve.methods import _registry as registry
from tokensieve.methods._config import Config

MACHINE_DEFAULTS = {"workers": "one a core, at most 4"}  # what differs between machines is said in words


# Methods


def paper(cls: type[Config]) -> str:
    """The method's paper as a link, or what it is instead."""
    if cls.paper is None:
        return "none: a control"
    title, authors, year, number = cls.paper
    return f"[{title}]({address(number)}), {authors}, {year}"


def address(number: str) -> str:
    """Where a paper is, by its arXiv number or DOI."""
    return f"https://doi.org/{number}" if "/" in number else f"https://arxiv.org/abs/{number}"


def methods_table() -> str:
    """One row a method: the index of docs/methods.md."""
    rows = []
    for name, cls in registry.list_methods().items():
        source = f"[{cls.paper[3]}]({address(cls.paper[3])})" if cls.paper else "control"
        if registry.is_reconstruction(cls):
            source = f"reconstruction of {source}"
        knob = f"`{cls.knob}`" if cls.knob else "–"
        learned = "learned part, to be trained" if cls.trained else "none"
        rows.append([f"[`{name}`](#{name})", card.summary(cls), card.ACTS[cls.point], knob, learned, source])
    return table(["name", "what it does", "acts", "main option", "learned part", "paper"], rows)


def method_names() -> str:
    """The names of all methods by kind, for the README."""
    known = registry.list_methods()
    controls = [name for name, cls in known.items() if cls.paper is None]
    thin = [name for name, cls in known.items() if registry.is_reconstruction(cls)]
    published = [name for name in known if name not in controls and name not in thin]
    return wrap(
        f"{len(known)} methods. From papers: {listed(published)}. Reconstructions, whose public sources say less than "
        f"one needs, so that no published number is claimed: {listed(thin)}. Controls: {listed(controls)}. "
        f"[In vision-language models](docs/language.md), around and in the decoder: "
        f"{listed(list(registry.list_language_methods()))}."
    )


def options_table(cls: type[Config]) -> str:
    """Every option of a method with its type, default and meaning."""
    rows = [
        [f"`{o.name}`", o.type, o.default if o.default == "required" else f"`{o.default}`", o.meaning]
        for o in card.options(cls)
    ]
    return table(["option", "type", "default", "meaning"], rows) if rows else "No options.\n"


def methods_page() -> str:
    """docs/methods.md: every card with its options."""
    about = wrap(
        "An index, one section a method (its card, which is the docstring of its class, and its options), and which "
        "methods [compose](#compositions). A reconstruction is written from a source that says less than one needs; "
        "no published number is claimed for it. A control is what a method must beat."
    )
    parts = [f"# Methods\n\n{NOTICE}{about}\n{methods_table()}"]
    for name, cls in registry.list_methods().items():
        facts = [
            f"acts {card.ACTS[cls.point]}",
            f"version {cls.version}",
            "has learned parts, which must be trained" if cls.trained else "nothing to train",
        ]
        if cls.ragged:
            facts.append("images may keep different numbers of tokens")
        if registry.is_reconstruction(cls):
            facts.append("a reconstruction")
        text = wrap("\n\n".join(card.prose(cls)))
        about = wrap(f"`ts.{cls.__name__}`: {', '.join(facts)}. Paper: {paper(cls)}.")
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
            rows.append([f"`{name}`", listed(new), reason])
    about = wrap(
        "`ts.apply(model, [first, second])` and `first+second` on the command line apply several "
        "methods. At their defaults, in a model of 12 blocks, any two of these compose, in both orders: "
        f"{listed(others)}; save those in the table, which other sites can make fit. These leave another number of "
        "tokens in every image and act alone, because a schedule of shares would depend on the batch: "
        f"{listed(ragged)}."
    )
    return f"## Compositions\n\n{about}\n" + table(["method", "refused with", "for example because"], rows)


# Families

ATTENDING = {  # in the order of docs/towers.json
    "global": "over the whole image in every block",
    "windows": "over the whole image in some blocks and in windows in others",
    "other": "otherwise: convolutions, pyramids, detectors on them",
}
FAMILIES = """A family is one shape of blocks that tokensieve knows how to run in halves. `ts.apply` finds the family
of a model by its blocks and checks it on a probe input.

Class, distillation and register tokens are never merged, dropped or skipped. Rotary positions follow their tokens.
Models without a class token are scored by attention received. A token keeps its window and its relative positions;
windows have as many tokens as are left in them, and methods that read the attention of an image act in the blocks where
it attends as a whole. Images of different sizes, packed in one row or padded to one length, each lose their own number.
Other blocks than those of the table, and anything else that the check on the probe input does not find exact, are
refused and not approximated."""


def families_table() -> str:
    """One row a family: the beginning of docs/families.md."""
    rows = []
    for name, family in list_families().items():
        blocks = ", ".join(f"`{block}`" for block in family.block_names())
        rows.append([f"`{name}`", family.description, blocks])
    return table(["family", "models", "blocks"], rows)


def walked(file: str = "families.json") -> dict[str, Any] | None:
    """What the walk over timm's model names found, or that over transformers' classes (towers.json); None where it has
    not run."""
    source = ROOT / "docs" / file
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
    """The counts the README states."""
    walk, towers = walked(), walked("towers.json")
    if walk is None or towers is None:
        return ""
    total, exact = len(walk["models"]), len(by_status(walk)[0])
    whole, windows, other = (towers["attending"][how] for how in ATTENDING)
    language = walked_hosts()
    hosts = "" if language is None else f" {count_of_hosts(language)}"
    return wrap(
        f"Of the {total} names that timm {walk['timm']} lists in the {len(walk['modules'])} files of plain ViTs (ViT, "
        f"DeiT, CLIP, SigLIP, DINOv2, DINOv3, EVA, BEiT, NaFlexViT and others), **{exact}** can be reduced: a method "
        f"that removes nothing leaves the output bit-equal (torch {walk['torch']}). **{total - exact}** are refused "
        f"with a reason. Of the {whole['classes']} classes of transformers {towers['transformers']} that encode images "
        f"and whose blocks attend over the whole image, **{whole['exact']}** can be reduced (CLIP, SigLIP, DINOv3, "
        "BEiT, video models, the towers of Qwen-VL and other vision-language models); of the "
        f"{windows['classes']} that attend in windows in some blocks, **{windows['exact']}**; and of the "
        f"{other['classes']} others, which are convolutions, pyramids and detectors on them, **{other['exact']}**. The "
        f"rest is refused with a reason. [docs/families.md](docs/families.md) names every one.{hosts}"
    )


def towers_table(walk: dict[str, Any]) -> str:
    """The classes of transformers: how many are exact by how they attend, which by family, and the others by reason."""
    exact: dict[str, list[str]] = collections.defaultdict(list)
    limited: dict[str, list[str]] = collections.defaultdict(list)
    others: dict[str, dict[str, list[str]]] = {how: collections.defaultdict(list) for how in ATTENDING}
    for name, found in sorted(walk["models"].items()):
        kind = name.partition("/")[2]
        reason = found["reason"].replace(kind, "it").partition(";")[0]
        if found["status"] == "exact":
            exact[found["family"]].append(kind)
            limited[reason].append(kind)
        else:
            said = reason if found["status"] == "refused" else f"{found['status']}: {reason}"
            others[found["attends"]][said].append(kind)
    del limited[""]
    shares = walk["attending"]
    counts = [[said, str(shares[how]["exact"]), str(shares[how]["classes"])] for how, said in ATTENDING.items()]
    families = [[f"`{family}`", str(len(kinds)), listed(kinds)] for family, kinds in sorted(exact.items())]
    parts = [
        table(["blocks attend", "exact", "classes"], counts),
        f"### Exact classes: {sum(map(len, exact.values()))}\n",
        table(["family", "classes", "names"], families),
        wrap(
            "Where no block, or not every one, attends over the whole image, these say which blocks methods that read "
            "attention can act in, and take the other methods anywhere:"
        ),
        table(["said of methods that read attention", "names"], by_reason(limited)),
    ]
    for how, reasons in others.items():
        parts.append(f"### Not exact, and attend {ATTENDING[how]}: {sum(map(len, reasons.values()))}\n")
        parts.append(table(["reason", "names"], by_reason(reasons)))
    return "\n".join(parts)


def by_reason(names: dict[str, list[str]]) -> list[list[str]]:
    """One row a reason, with the names it was given for."""
    return [[reason, listed(sorted(kinds))] for reason, kinds in sorted(names.items())]


def families_page() -> str | None:
    """docs/families.md: the families, what holds for all of them, and every walked model name."""
    walk = walked()
    if walk is None:
        return None
    exact, refused = by_status(walk)
    parts = [
        f"# Model families\n\n{NOTICE}{wrap(FAMILIES)}\n{families_table()}",
        "## Model names of timm\n\n"
        + wrap(
            f"Walked with timm {walk['timm']} and torch {walk['torch']} by `python -m tests.helpers.walk`: every "
            "name is built, small where it allows that, and a method that removes nothing is applied."
        ),
        f"### Exact: {len(exact)}\n\nThe output is bit-equal to the model's own.\n\n{wrap(listed(exact))}",
        f"### Refused: {sum(map(len, refused.values()))}\n",
    ]
    for reason, names in refused.items():
        parts.append(wrap(f"{reason[:1].upper()}{reason[1:]}: {listed(names)}"))
    towers = walked("towers.json")
    if towers is not None:
        parts.append(
            "## Classes of transformers\n\n"
            + wrap(
                f"Walked with transformers {towers['transformers']} and torch {towers['torch']} by `python -m "
                "tests.helpers.walk_towers`: every class that is given images, or what its processor makes of them, "
                "and reads no text beside them, built from a small config with random weights. How its blocks attend "
                "is read from the attention calls of one run (`tests/helpers/walk_attends.py`). What is special about "
                "a family stands in its file in `src/tokensieve/families`."
            )
        )
        parts.append(towers_table(towers))
    return "\n".join(parts)


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
    section = f"## {path}\n\n```text\n{usage}\n```\n\n{wrap(command.help or '')}"
    rows = [[f"`{words[p.name]}`", said(getattr(p, "help", None)), ""] for p in arguments]
    for option in options:
        flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        rows.append([flags, said(option.help), default_of(option)])
    return section + ("\n" + table(["argument or option", "meaning", "default"], rows) if rows else "")


def commands_page() -> str:
    """docs/cli.md: the help of every command."""
    root: Any = typer.main.get_command(app)
    parts = [f"# Commands\n\n{NOTICE}`tokensieve COMMAND --help` says the same in the terminal.\n"]
    for name in sorted(root.list_commands(None)):
        parts.append(command_section(f"tokensieve {name}", root.get_command(None, name)))
    return "\n".join(parts)


def documents() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, body in {"methods": method_names(), "counts": counts(), "results": results()}.items():
        readme = fill(readme, name, body)
    pages = {
        "README.md": readme,
        "docs/methods.md": methods_page(),
        "docs/language.md": language_page(paper, options_table),
        "docs/cli.md": commands_page(),
        "docs/families.md": families_page(),
        "docs/results.md": results_page(),
        "docs/comparison.md": comparison_page(),
    }
    return {ROOT / name: page for name, page in pages.items() if page is not None}


def main() -> int:
    return write_or_check(documents(), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
