"""What every method promises on every family: exact when idle, N tokens in and N out, the budget, the batch.

Which methods meet which models: tests/helpers/cases.py. Answers that must agree between two different runs are
compared in float64, where rounding cannot turn one choice of tokens into another.
"""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import (
    CONFIGS,
    DEFAULTS,
    FIRST,
    FIRST_OF_TIMM,
    METHODS,
    PATCHES,
    build,
    images,
    layout_of,
    learned_parts,
    nothing,
    reduced,
    run,
    shared,
)  # fmt: skip
from tokensieve.families._layout import Layout
from tokensieve.methods import _registry as registry
from tokensieve.methods._method import Method
from tokensieve.models.checkpoint import method_from_dict
from tokensieve.tokens.decision import return_point

every_on_all = every_case(CONFIGS)
every_on_first = every_case(CONFIGS, FIRST)


def idle(method: str) -> Method:
    config = nothing(registry.list_methods()[method])
    if config is None:
        pytest.skip(f"{method} has no option that makes it remove nothing")
    return config


@every_case(DEFAULTS)
def test_removing_nothing_is_bit_equal(family: str, name: str, config: str) -> None:
    method = idle(config)
    model, x = build(family, name), images()
    dense = run(model, x)
    features = model.forward_features(x)
    ts.apply(model, method)
    assert torch.equal(run(model, x), dense)
    assert torch.equal(model.forward_features(x), features)


@every_on_all
def test_remove_gives_the_exact_original(family: str, name: str, config: str) -> None:
    model, x = build(family, name), images(2)
    kinds = [type(module) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    dense = run(model, x)
    ts.apply(model, CONFIGS[config])
    assert ts.is_applied(model) and ts.applied(model) == CONFIGS[config]
    assert not torch.equal(run(model, x), dense)
    assert ts.remove(model) is model
    assert not ts.is_applied(model) and ts.applied(model) == ()
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(run(model, x), dense)


@every_case(DEFAULTS)
def test_shapes_are_those_of_the_dense_model(family: str, name: str, config: str) -> None:
    dense, x = shared(family, name), images(2)
    model = shared(family, name, config)
    with torch.no_grad():
        for one, other in (
            (dense(x), model(x)),
            (dense.forward_features(x), model.forward_features(x)),
            (dense.forward_head(dense.forward_features(x)), model.forward_head(model.forward_features(x))),
        ):
            assert type(other) is type(one) and other.shape == one.shape and other.dtype == one.dtype
            assert other.isfinite().all()


def same_structure(one: object, other: object) -> None:
    """Both are tensors of one shape, or sequences of such in the same order."""
    assert type(other) is type(one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        assert other.shape == one.shape and other.dtype == one.dtype and other.isfinite().all()
    else:
        assert isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_structure(a, b)


@every_on_first
def test_forward_intermediates(family: str, name: str, config: str) -> None:
    dense, x = shared(family, name), images(2)
    model = shared(family, name, config)
    with torch.no_grad():
        features = model.forward_features(x)
    for layout, norm in product(("NCHW", "NLC"), (False, True)):
        options = {"norm": norm, "output_fmt": layout, "return_prefix_tokens": True}
        with torch.no_grad():
            last, inner = model.forward_intermediates(x, **options)
            same_structure(dense.forward_intermediates(x, **options), (last, inner))
            assert torch.equal(last, features)
            patches, prefix = inner[-1]
            assert torch.equal(prefix if norm else model.norm(prefix), last[:, : prefix.shape[1]])
            if layout == "NLC" and norm:
                assert torch.equal(patches, last[:, prefix.shape[1] :])
            # What is read in the middle is what a model cut off there gives.
            cut = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True, **options)
            assert torch.equal(cut[0][0], inner[1][0]) and torch.equal(cut[0][1], inner[1][1])


@every_case(CONFIGS, FIRST_OF_TIMM)  # transformers has backbones: test_hugging_face.py
def test_intermediate_layers_and_features_only(family: str, name: str, config: str) -> None:
    dense, x = shared(family, name), images(2)
    model = shared(family, name, config)
    with torch.no_grad():
        if hasattr(dense, "get_intermediate_layers"):
            options = {"n": 2, "reshape": True, "return_prefix_tokens": True, "norm": True}
            same_structure(dense.get_intermediate_layers(x, **options), model.get_intermediate_layers(x, **options))
    wrapped = build(family, name, features_only=True)
    with torch.no_grad():
        whole = wrapped(x)
        ts.apply(wrapped, CONFIGS[config])
        found = wrapped(x)
        same_structure(whole, found)
        read = wrapped.model.forward_intermediates(x, indices=len(found), intermediates_only=True)
        for one, other in zip(read, found, strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(found[-1], whole[-1])
    assert torch.equal(torch.stack(ts.remove(wrapped)(x)), torch.stack(whole))


def expected_counts(methods: tuple[Method, ...], layout: Layout) -> list[tuple[int, int]]:
    """Tokens that attend and that are processed in every block, prefix included, from the configs alone."""
    present, away, counts = layout.grid[0] * layout.grid[1], [], []
    acting = [(m, {b: n for n, b in enumerate(m.blocks(layout.depth))}) for m in methods]
    for block in range(layout.depth):
        present += sum(n for n, at in away if at == (block, False))
        attended = 0
        for point in ("before", "middle", "after"):
            if point == "middle":
                attended = present
            for method, ordinals in acting:
                if block in ordinals and method.point == point:
                    left = method.remaining(present, ordinals[block], layout)
                    until = method.returns_at(ordinals[block], layout)
                    if until != "end":
                        away.append((present - left, return_point(until, block, point)))
                    present = left
            if point == "middle":
                present += sum(n for n, at in away if at == (block, True))
                counts.append((layout.prefix + attended, layout.prefix + present))
    return counts


@every_on_all
def test_budget_sizes_and_prefix(family: str, name: str, config: str) -> None:
    methods, x = CONFIGS[config], images(2)
    model = shared(family, name, config)
    layout = layout_of(model)
    trace = ts.trace(model, x)
    expected = expected_counts(methods, layout)
    found = [(stage.attended, stage.processed) for stage in trace.stages]
    assert [stage.block for stage in trace.stages] == list(range(layout.depth))
    if any(method.ragged for method in methods):
        assert all(a <= b and c <= d for (a, c), (b, d) in zip(found, expected, strict=True))
    else:
        assert found == expected
    assert sum(a for a, _ in found) < layout.depth * (layout.prefix + PATCHES)
    # A site at which an image keeps all of its tokens leaves a ragged batch as long as it was.
    least = 0 if any(method.ragged for method in methods) else 1
    assert trace.events and all(event.before - event.after >= least for event in trace.events)
    tokens = trace.tokens
    assert tokens is not None and tokens.x.shape[0] == 2
    if tokens.back.outer is None:
        # Every original stands in one token, is parked, or is gone: sizes and those who are out add up to N.
        inside = (tokens.group >= 0).sum(dim=1)
        assert torch.equal(tokens.sizes.sum(dim=1).long(), inside)
        assert tokens.group.shape == (2, PATCHES) and int(tokens.group.max()) < tokens.count
        stands = (tokens.group >= 0).unsqueeze(2)
        counted = torch.nn.functional.one_hot(tokens.group.clamp(min=0), tokens.count) * stands
        assert torch.equal(counted.sum(dim=1), tokens.sizes.long())
    elif not tokens.back.parked:  # every original is shared out among the mixed tokens
        torch.testing.assert_close(tokens.sizes.sum(dim=1), torch.full((2,), float(PATCHES)))
    assert tokens.prefix == layout.prefix
    # The prefix comes out as the last block left it, in its own places; patches start right behind it.
    options = {
        "norm": False,
        "output_fmt": "NLC",
        "return_prefix_tokens": layout.prefix > 0,
        "intermediates_only": True,
    }
    with torch.no_grad():
        last = model.forward_intermediates(x, indices=1, **options)[0]
    # timm gives no prefix where there is none, and Eva fails when asked for it.
    patches, prefix = last if layout.prefix else (last, tokens.x[:, :0])
    assert patches.shape[1] == PATCHES
    assert torch.equal(prefix, tokens.x[:, : layout.prefix])
    for image in range(2):
        for original in range(PATCHES):
            slot = int(tokens.group[image, original]) if tokens.back.outer is None else -1
            if slot >= 0 and not tokens.back.parked:
                assert torch.equal(patches[image, original], tokens.x[image, layout.prefix + slot])


@every_on_all
def test_an_answer_does_not_depend_on_the_batch(family: str, name: str, config: str) -> None:
    model, x = shared(family, name, config, torch.float64), images(3, torch.float64)
    together = run(model, x)
    alone = torch.cat([run(model, image) for image in x.split(1)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(run(model, x[order]), together[order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], rtol=1e-3, atol=1e-3)


@every_on_first
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family: str, name: str, config: str, dtype: torch.dtype) -> None:
    model = shared(family, name, config, dtype)
    out = run(model, images(2, dtype))
    assert out.dtype == dtype and out.isfinite().all()
    trace = ts.trace(model, images(2, dtype))
    found, expected = [s.attended for s in trace.stages], expected_counts(CONFIGS[config], layout_of(model))
    if any(method.ragged for method in CONFIGS[config]):
        assert all(a <= b for a, (b, _) in zip(found, expected, strict=True))
    else:
        assert found == [a for a, _ in expected]


@every_on_first
def test_autocast(family: str, name: str, config: str) -> None:
    model = shared(family, name, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, images(2))
    assert out.isfinite().all()


@every_on_all
def test_state_dicts_load_both_ways(family: str, name: str, config: str) -> None:
    dense, model = build(family, name), reduced(family, name, config)
    weights = {key: torch.randn_like(value) if value.is_floating_point() else value
               for key, value in dense.state_dict().items()}  # fmt: skip
    model.load_state_dict(weights, strict=True)
    stored = model.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in weights.items())
    own = set(stored) - set(weights)
    assert bool(own) == learned_parts(CONFIGS[config], layout_of(model))
    dense.load_state_dict({key: value for key, value in stored.items() if key not in own}, strict=True)
    assert all(torch.equal(value, weights[key]) for key, value in dense.state_dict().items())
    again = reduced(family, name, config)
    again.load_state_dict(stored, strict=True)
    assert all(torch.equal(value, stored[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("config", [*CONFIGS, *(f"idle {name}" for name in METHODS)])
def test_configs_round_trip(config: str) -> None:
    methods = (idle(config.removeprefix("idle ")),) if config.startswith("idle ") else CONFIGS[config]
    for method in methods:
        assert method_from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert ts.parse(ts.spell(methods)) == methods
    assert len({*methods, *ts.parse(ts.spell(methods))}) == len(methods)  # equal configs hash alike
