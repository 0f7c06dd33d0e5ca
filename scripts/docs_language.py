"""docs/language.md: methods of vision-language models, from their cards, behind the prose of scripts/language.md."""

from __future__ import annotations

from collections.abc import Callable

from docs_hosts import hosts_section
from docs_text import NOTICE, ROOT, table, wrap
from tokensieve.methods import _card as card
from tokensieve.methods import _registry as registry
from tokensieve.methods._config import Config
from tokensieve.methods.language._prefix import PrefixMethod

HEAD = ROOT / "scripts" / "language.md"


def language_page(paper: Callable[[type[Config]], str], options: Callable[[type[Config]], str]) -> str:
    """The page: how to use them, an index, and one section a method."""
    known = registry.list_language_methods()
    rows = []
    for name, cls in known.items():
        source = cls.paper[3] if cls.paper else "control"
        rows.append([f"[`{name}`](#{name})", card.summary(cls), card.place(cls), source])
    parts = [
        HEAD.read_text(encoding="utf-8").replace("<!-- notice -->\n", NOTICE),
        hosts_section(),
        "## Methods\n\n" + table(["name", "what it does", "acts", "paper"], rows),
    ]
    for name, cls in known.items():
        facts = [f"acts {card.place(cls)}", f"version {cls.version}"]
        if issubclass(cls, PrefixMethod) and cls.ragged:
            facts.append("images may keep different numbers of tokens")
        if issubclass(cls, PrefixMethod) and cls.reads_text:
            facts.append("reads the text around the image")
        about = wrap(f"`ts.{cls.__name__}`: {', '.join(facts)}. Paper: {paper(cls)}.")
        text = wrap("\n\n".join(card.prose(cls)))
        parts.append(f"## {name}\n\n{about}\n{text}\n{options(cls)}")
    return "\n".join(parts)
