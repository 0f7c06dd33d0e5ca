"""What the fast suite promises to run: every kind of decision on every family, every method on two families."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.helpers.cases import FEW, KINDS, cases, composed_like, fast, kinds_of, members
from tests.helpers.models import COMPOSED, CONFIGS, DEFAULTS, FACTORIES, FIRST, METHODS, MODELS, build
from tests.helpers.towers import ELSEWHERE, TOWERS
from tokensieve.families._locate import family_of, list_families
from tokensieve.methods import _registry as registry


def test_every_registered_family_and_method_is_in_the_matrix() -> None:
    usable = [name for name, family in list_families().items() if family.lacking() is None]
    known = {*FACTORIES, *TOWERS, *ELSEWHERE}
    assert sorted(known) == sorted(usable), "give the new family small models in tests/helpers/models.py or towers.py"
    assert all(FACTORIES.values())
    assert sorted(DEFAULTS) == sorted(registry.list_methods())
    for family, name in MODELS:
        assert family_of(build(family, name)).family.name == family


def test_every_method_is_of_a_kind_and_every_kind_has_methods() -> None:
    assert all(kinds_of(method) for method in METHODS)
    assert all(members(kind) for kind in KINDS)
    known = {"topk": {"drop"}, "tome": {"merge"}, "tosa": {"drop", "skip", "learned"}, "expedite": {"soft"}}
    known |= {"algm": {"merge", "ragged"}, "psvit": {"merge", "sharing"}, "dtem": {"merge", "soft", "learned"}}
    assert {method: set(kinds_of(method)) for method in known} == known


@pytest.mark.parametrize("models", [MODELS, FIRST], ids=["all models", "one a family"])
def test_the_fast_suite_has_every_kind_on_every_family_and_every_method_on_two_families(
    models: tuple[tuple[str, str], ...],
) -> None:
    soon = fast(CONFIGS, models)
    for model in models:
        kinds = [kinds_of(config) for *place, config in soon if tuple(place) == model and config in DEFAULTS]
        if model in FIRST:
            assert frozenset().union(*kinds) == set(KINDS), model
        assert len(frozenset().union(*kinds)) >= FEW, model
    families = Counter(config for config, _ in {(config, family) for family, _, config in soon})
    assert all(families[method] >= 2 for method in METHODS)
    composed = {composed_like(config): families[config] for config in COMPOSED if families[config]}
    assert composed.keys() == {composed_like(config) for config in COMPOSED} and min(composed.values()) >= 2


def test_the_slow_suite_has_all_the_rest() -> None:
    every = {(*model, config) for model in MODELS for config in DEFAULTS}
    every |= {(*model, config) for model in FIRST for config in COMPOSED}
    found = {case.values: [mark.name for mark in case.marks] for case in cases(CONFIGS)}
    assert found.keys() == every and len(cases(CONFIGS)) == len(every)
    assert {case for case, marks in found.items() if not marks} == fast(CONFIGS)
    assert all(marks in ([], ["slow"]) for marks in found.values())
