"""One way to write a method down: every spelling is read back, every mistake is one clear sentence."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tokensieve.models.checkpoint import method_from_dict

SHARES = st.floats(0.01, 1.0)
SHARE_OR_LIST = SHARES | st.lists(SHARES, min_size=1, max_size=4).map(tuple)
SITES = st.none() | st.sets(st.integers(0, 11), min_size=1).map(lambda s: tuple(sorted(s)))
BAT_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "keep": SHARE_OR_LIST,
    "sites": SITES,
    "clusters": SHARE_OR_LIST,
    "surplus": st.integers(-9, 9),
    "weight": st.sampled_from(["size", "class", "equal"]),
    "proportional": st.booleans(),
    "metric": st.sampled_from(["x", "keys"]),
    "rounds": st.integers(1, 20),
}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "bat": BAT_OPTIONS,
    "bat-paper": BAT_OPTIONS | {"surplus": st.none() | st.integers(-9, 9)},
    "tosa": {
        "keep": SHARE_OR_LIST,
        "sites": SITES,
        "score": st.sampled_from(["selector", "own", "class", "random"]),
        "bypass": st.sampled_from(["layer", "attention"]),
        "queries": st.sampled_from([None, "class", "all"]),
        "kernel": st.sampled_from([1, 3]),
        "scaled": st.booleans(),
        "block": st.integers(1, 99),
        "seed": st.integers(0, 99),
    },
    "tome": {
        "r": st.integers(0, 30) | st.lists(st.integers(0, 30), min_size=1, max_size=12).map(tuple),
        "inflect": st.floats(-1, 1),
        "sites": SITES,
        "metric": st.sampled_from(["keys", "x"]),
        "proportional": st.booleans(),
    },
    "evit": {"keep": SHARE_OR_LIST, "sites": SITES, "fuse": st.booleans()},
    "topk": {"keep": SHARE_OR_LIST, "sites": SITES, "score": st.sampled_from(["importance", "received"])},
    "random": {"keep": SHARE_OR_LIST, "sites": SITES, "seed": st.integers(0, 99)},
    "grid": {"keep": SHARE_OR_LIST, "sites": SITES},
}


@st.composite
def configs(draw: st.DrawFn) -> ts.Method:
    name = draw(st.sampled_from(sorted(OPTIONS)))
    chosen = draw(st.sets(st.sampled_from(sorted(OPTIONS[name]))))
    return ts.list_methods()[name](**{option: draw(OPTIONS[name][option]) for option in sorted(chosen)})


@settings(deadline=None, max_examples=150)
@given(composition=st.lists(configs(), min_size=1, max_size=3))
def test_every_composition_is_read_back_from_its_spelling(composition: list[ts.Method]) -> None:
    assert ts.parse(ts.spell(composition)) == tuple(composition)


@settings(deadline=None, max_examples=100)
@given(config=configs())
def test_every_config_survives_json(config: ts.Method) -> None:
    again = method_from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config) and type(again) is type(config)


def test_the_examples_of_the_documentation() -> None:
    assert ts.parse("bat:keep=0.5") == (ts.BAT(keep=0.5),)
    assert ts.sweep("bat:keep=0.5,0.7,0.9") == [(ts.BAT(keep=k),) for k in (0.5, 0.7, 0.9)]
    assert ts.parse("tome:r=4+tosa:keep=0.5") == (ts.ToMe(r=4), ts.ToSA(keep=0.5))
    assert ts.parse("bat:sites=[1,3,5,7,9]:keep=0.79") == (ts.BAT(sites=(1, 3, 5, 7, 9), keep=0.79),)
    assert ts.spell((ts.ToMe(r=4), ts.ToSA(keep=0.5))) == "tome:r=4+tosa:keep=0.5"
    assert ts.spell(ts.BAT(keep=0.5)) == "bat:keep=0.5"
    assert ts.spell((ts.BAT(),)) == "bat:keep=0.72"  # the knob is always said: defaults may change, results stay


def test_commas_sweep_and_multiply() -> None:
    found = ts.sweep("tome:r=4,8+tosa:keep=0.5,0.7:score=own")
    assert [ts.spell(v) for v in found] == [
        "tome:r=4+tosa:keep=0.5:score=own",
        "tome:r=4+tosa:keep=0.7:score=own",
        "tome:r=8+tosa:keep=0.5:score=own",
        "tome:r=8+tosa:keep=0.7:score=own",
    ]
    lists = ts.sweep("topk:sites=[1,2],[3]:keep=0.5,0.7")
    assert [(v[0].sites, v[0].keep) for v in lists] == [((1, 2), 0.5), ((1, 2), 0.7), ((3,), 0.5), ((3,), 0.7)]


@pytest.mark.parametrize(
    ("word", "option", "value"),
    [
        ("evit:fuse=false", "fuse", False),
        ("evit:fuse=True", "fuse", True),
        ("evit:sites=none", "sites", None),
        ("bat:keep=1", "keep", 1.0),
        ("bat:keep=[1,0.5]", "keep", (1, 0.5)),
        ("bat-paper:surplus=none", "surplus", None),
        (" bat:keep=0.5 ", "keep", 0.5),
    ],
)
def test_values_are_read_as_what_they_are(word: str, option: str, value: Any) -> None:
    found = getattr(ts.parse(word)[0], option)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bta", ["'bta'", "did you mean 'bat'"]),
        ("tom:r=4", ["'tom'", "did you mean 'tome'"]),
        ("ToMe", ["'ToMe'", "did you mean 'tome'"]),
        ("xyzzy", ["unknown method 'xyzzy'", "known are", "bat, bat-paper"]),
        ("bat:kep=0.5", ["'kep'", "did you mean 'keep'"]),
        ("tome:zzz=1", ["'zzz'", "it has r, inflect"]),
        ("bat:keep", ["'keep' is not option=value"]),
        ("bat:keep=", ["'keep=' is not option=value"]),
        ("bat:keep=0.5:keep=0.6", ["sets 'keep' twice"]),
        ("bat:keep=half", ["keep must be", "'half'"]),
        ("bat:keep=0.5,", ["keep must be", "''"]),
        ("bat:sites=[1,3", ["sites must be", "'[1,3'"]),
        ("bat:sites=3", ["sites must be", "'3'"]),
        ("tome:r=2.5", ["r must be", "'2.5'"]),
        ("tome:r=-1", ["r must be", "0 or more", "-1"]),
        ("tome:r=true", ["r must be", "'true'"]),
        ("tome:inflect=2", ["inflect must be between -1 and 1", "2"]),
        ("evit:fuse=maybe", ["fuse must be", "'maybe'"]),
        ("bat:weight=color", ["weight must be one of 'size', 'class', 'equal'", "'color'"]),
        ("tosa:kernel=2", ["kernel must be an odd number", "2"]),
        ("tosa:block=0", ["block must be 1 or more"]),
        ("bat:rounds=0", ["rounds must be 1 or more"]),
        ("", ["empty method"]),
        ("bat+", ["empty method in 'bat+'"]),
        ("bat:keep=0.5,0.7", ["names 2 variants where one is expected"]),
    ],
)
def test_mistakes_are_one_clear_sentence(spec: str, words: list[str]) -> None:
    with pytest.raises(ts.TokensieveError) as caught:
        ts.parse(spec)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    for word in words:
        assert word in said


@pytest.mark.parametrize("keep", ["0", "1.01", "-0.5", "[0.5,0]", "[0.5,2]", "[]", "1e9"])
@pytest.mark.parametrize("name", ["bat", "bat-paper", "tosa", "evit", "topk", "random", "grid"])
def test_keep_outside_zero_to_one(name: str, keep: str) -> None:
    with pytest.raises(ts.TokensieveError, match=rf"{name}: keep must be a share in \(0, 1\]"):
        ts.parse(f"{name}:keep={keep}")


def test_every_method_can_be_written() -> None:
    for name, cls in ts.list_methods().items():
        assert ts.parse(name) == (cls(),)
        assert set(cls.option_types()) == {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize("spec", [None, 3, ts.BAT(), ["bat"]])
def test_a_spec_is_text(spec: Any) -> None:
    for read in (ts.parse, ts.sweep):
        with pytest.raises(ts.TokensieveError, match="a spec is a text such as"):
            read(spec)
