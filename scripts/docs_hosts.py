"""The part of docs/language.md that says of every vision-language class of transformers what holds for it."""

from __future__ import annotations

import collections
import json
import re
from typing import Any

from docs_text import ROOT, listed, table, wrap

WALK = ROOT / "docs" / "language_hosts.json"
CLASS = re.compile(r"\b[A-Z]\w*(?:Model|Encoder|ForConditionalGeneration|ForCausalLM|Text2Text|Diffusion|_V3)\b")


def walked_hosts() -> dict[str, Any] | None:
    """What the walk over the image-text-to-text classes of transformers found; None where it has not run."""
    return json.loads(WALK.read_text(encoding="utf-8")) if WALK.exists() else None


def exact_hosts(walk: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(the classes on which prefix methods are exact, those of them on which decoder methods are exact too)."""
    exact = sorted(name for name, found in walk["models"].items() if found["status"] == "exact")
    return exact, [name for name in exact if walk["models"][name]["decoder"] == "exact"]


def count_of_hosts(walk: dict[str, Any]) -> str:
    """The sentence of the README."""
    prefix, decoder = exact_hosts(walk)
    return (
        f"Of the {len(walk['models'])} classes that read images and text and answer in text, prefix methods are exact "
        f"on **{len(prefix)}** and decoder methods on **{len(decoder)}** of these "
        "([docs/language.md](docs/language.md#classes))."
    )


def hosts_section() -> str:
    """Which classes are exact, and why the others are not."""
    walk = walked_hosts()
    if walk is None:
        return ""
    prefix, decoder = exact_hosts(walk)
    behind: dict[str, list[str]] = collections.defaultdict(list)
    for name in prefix:
        if name not in decoder:
            behind[_short(walk["models"][name]["of decoder"])].append(name)
    others: dict[str, list[str]] = collections.defaultdict(list)
    for name, found in sorted(walk["models"].items()):
        if name not in prefix:
            before = "" if found["status"] == "refused" else f"{found['status']}: "
            others[before + _short(found["reason"])].append(name)
    parts = [
        "## Classes\n",
        wrap(
            f"Walked with transformers {walk['transformers']} and torch {walk['torch']} by `python -m "
            f"tests.helpers.walk_language`: all {len(walk['models'])} classes of its image-text-to-text models, each "
            "built from a small config with random weights in float64 and called with two prompts of different length. "
            "Exact means: where nothing is left out, logits are bit-equal and generation is token for token the same; "
            "with every second token left out, logits in prefill and of four tokens decoded on the cache are those of "
            f"the dense model whose layers are not shown these tokens. Prefix methods are exact on {len(prefix)} "
            f"classes, decoder methods on {len(decoder)} of these."
        ),
        f"### Prefix and decoder methods: {len(decoder)}\n\n{wrap(listed(decoder))}",
        f"### Prefix methods only: {len(prefix) - len(decoder)}\n",
        _by_reason(behind),
        f"### Neither: {sum(map(len, others.values()))}\n",
        _by_reason(others),
    ]
    return "\n".join(parts)


def _short(reason: str) -> str:
    """A reason without the names of classes and methods, so that those that are refused for the same one stand
    together."""
    reason = CLASS.sub("it", reason.partition(": choose")[0]).replace(" by prefix-grid", "")
    return reason.removeprefix(
        "prefix-grid acts between the images and the language model of a vision-language model, and "
    )


def _by_reason(names: dict[str, list[str]]) -> str:
    rows = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    return table(["reason", "names"], [[reason, listed(found)] for reason, found in rows])
