"""Which method meets which model in the fast suite; everything else meets everything else in `make test-slow`.

A method never sees a model and a family never sees a method, so a fast test needs the first model of every family with
one method of each kind of decision, its other models with two of them in turn, every method with two families, and one
composition of each kind with two. Kinds come from the methods themselves, by what they declare and by what a run of
them does: a new method or family enters by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any

import pytest

import tokensieve as ts
from tests.helpers.models import (
    COMPOSED,
    CONFIGS,
    DEFAULTS,
    DEPTH,
    FIRST,
    MODELS,
    build,
    images,
    layout_of,
    learned_parts,
)

Model = tuple[str, str]
Case = tuple[str, str, str]

FEW = 2  # kinds that the further models of a family meet
KINDS = ("drop", "merge", "skip", "soft", "ragged", "learned", "sharing")


@cache
def done_by(method: str) -> frozenset[str]:
    """What a method does to tokens when it runs: "drop", "merge", both, or nothing that an index can say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)  # selectors that nobody trained
        events = ts.trace(ts.apply(build(*FIRST[0]), DEFAULTS[method]), images()).events
    groups = [image for event in events if event.group is not None for image in event.group]
    dropped = any(bool((group < 0).any()) for group in groups)
    merged = any(len(group[group >= 0].unique()) < int((group >= 0).sum()) for group in groups)
    return frozenset({"drop"} if dropped else ()) | ({"merge"} if merged else set())


@cache
def kinds_of(method: str) -> frozenset[str]:
    """The kinds of decision that a method takes; at least one."""
    (config,) = DEFAULTS[method]
    layout = layout_of(build(*FIRST[0]))
    declared = {
        "skip": config.returns_at(0, layout) != "end",
        "soft": config.mixes,
        "ragged": config.ragged,
        "learned": learned_parts(DEFAULTS[method], layout),
        "sharing": bool(config.sharing(DEPTH)),
    }
    return done_by(method) | {kind for kind, is_of_it in declared.items() if is_of_it}


@cache
def members(kind: str) -> tuple[str, ...]:
    """The methods of a kind, sorted."""
    return tuple(method for method in DEFAULTS if kind in kinds_of(method))


@cache
def composed_like(config: str) -> tuple[str, ...]:
    """When the tokens that each method of a composition takes away return: what makes two compositions alike."""
    layout = layout_of(build(*FIRST[0]))
    return tuple(str(method.returns_at(0, layout)) for method in CONFIGS[config])


def one_of_each_kind(model: Model, configs: Collection[str]) -> set[str]:
    """One method of each kind of decision, for models that follow each other another one as far as there are more; a
    further model of a family meets a few kinds, other ones than the model before it."""
    number = MODELS.index(model)
    found = [[method for method in members(kind) if method in configs] for kind in KINDS]
    kinds = [methods for methods in found if methods]
    if model not in FIRST:
        kinds = [kinds[(FEW * number + place) % len(kinds)] for place in range(min(FEW, len(kinds)))]
    return {methods[number % len(methods)] for methods in kinds}


def two_families(number: int, models: Sequence[Model]) -> Iterable[Model]:
    """The first family's first model and, for consecutive numbers, that of each other family in turn."""
    firsts = [model for model in FIRST if model in models] or list(models)
    yield firsts[0]
    if firsts[1:]:
        yield firsts[1:][number % len(firsts[1:])]


def fast(configs: Collection[str], models: Sequence[Model] = MODELS) -> set[Case]:
    """(family, model, config) of the fast suite."""
    found = {(*model, config) for model in models for config in one_of_each_kind(model, configs)}
    alike = {composed_like(config): config for config in configs if config in COMPOSED}
    others = [config for config in configs if config not in COMPOSED]
    for number, config in enumerate([*others, *alike.values()]):
        found |= {(*model, config) for model in two_families(number, models)}
    return found


def cases(
    configs: Collection[str], models: Sequence[Model] = MODELS, quick: Sequence[Model] | None = None
) -> list[Any]:
    """Every method on every model, compositions on the first model of every family; slow ones are marked.

    How two methods meet depends on the model through nothing that one method alone does not meet as well. The fast
    suite runs what ``fast`` says of the models, or where cases take longer of those that are ``quick`` alone.
    """
    soon = fast(configs, models if quick is None else quick)
    return [
        pytest.param(*model, config, marks=() if (*model, config) in soon else pytest.mark.slow)
        for model in models
        for config in configs
        if config not in COMPOSED or model in FIRST
    ]


def every_case(
    configs: Collection[str], models: Sequence[Model] = MODELS, quick: Sequence[Model] | None = None
) -> pytest.MarkDecorator:
    """Parametrises a test over ``cases``."""
    return pytest.mark.parametrize(("family", "name", "config"), cases(configs, models, quick))
