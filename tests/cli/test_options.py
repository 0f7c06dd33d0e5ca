"""Options are declared once: every command is built from dataclasses, and what typer reads comes back as they say."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from tokensieve.cli.command import verb
from tokensieve.errors import TokensieveError
from tokensieve.export.options import FORMAT_NAMES
from tokensieve.export.run import FORMATS
from tokensieve.models.options import ModelOptions, SizeOptions
from tokensieve.models.source import source_of
from tokensieve.pixels.model import TASKS
from tokensieve.pixels.options import PIXEL_TASKS
from tokensieve.train.options import TrainOptions
from tokensieve.utils.options import Changes, Option


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What may be changed."""

    rate: Annotated[float, Option("Rate.", min=0)] = 0.1
    fixed: int = 3


@dataclass(frozen=True, kw_only=True)
class Asked(SizeOptions):
    """One option of every kind."""

    name: Annotated[str, Option("Name.", metavar="NAME", argument=True)] = field(kw_only=False)
    many: Annotated[tuple[int, ...], Option("Numbers [1].", names=("-n", "--numbers"), min=1)] = ()
    hidden: Annotated[int, Option("Not offered.")] = 7
    changes: Annotated[dict[str, Any], Changes(Recipe)] = field(default_factory=dict)


@pytest.fixture
def asked() -> tuple[list[Asked], typer.Typer]:
    """A command that keeps what it is called with."""
    calls: list[Asked] = []

    def keep(options: Asked) -> None:
        """Keep them."""
        calls.append(options)

    app = typer.Typer()
    app.command()(verb(Asked, without=("hidden",))(keep))
    return calls, app


def test_fields_are_options_and_values_come_back_as_declared(asked: tuple[list[Asked], typer.Typer]) -> None:
    calls, app = asked
    given = ["x", "-n", "2", "--numbers", "3", "--img-size", "4,5", "--rate", "0"]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert CliRunner().invoke(app, ["y"]).exit_code == 0
    assert calls == [Asked("x", many=(2, 3), img_size=(4, 5), changes={"rate": 0.0}), Asked("y")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["x", "-n", "0"], "numbers"),
        (["x", "--hidden", "3"], "No such option"),
        (["x", "--fixed", "3"], "No such option"),
        (["x", "--img-size", "1,2,3"], "expected one number, or height and width"),
        ([], "NAME"),
    ],
)
def test_what_does_not_fit_is_refused(asked: tuple[list[Asked], typer.Typer], given: list[str], said: str) -> None:
    calls, app = asked
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and not calls
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_names_that_are_told_before_their_code_is_loaded_are_those_of_the_code() -> None:
    assert set(PIXEL_TASKS) == set(TASKS)
    assert set(FORMAT_NAMES) == set(FORMATS)


def test_a_training_needs_a_stage_that_there_is() -> None:
    assert TrainOptions("test_vit", output="run", task="depth").stage == "head"
    with pytest.raises(TokensieveError, match="what is to be trained"):
        TrainOptions("test_vit", output="run")
    with pytest.raises(TokensieveError, match="unknown stage 'finetun'"):
        TrainOptions("test_vit", output="run", stage="finetun")


def test_what_a_field_means_is_said_once() -> None:
    """No room declares a field of another one again, but where its help or its default differ."""
    hints = typing.get_type_hints(TrainOptions, include_extras=True)
    own = [f.name for f in dataclasses.fields(ModelOptions)]
    assert all(hints[name] == typing.get_type_hints(ModelOptions, include_extras=True)[name] for name in own)


def test_a_name_is_read_once_into_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, file, text in (
        ("saved", "tokensieve.json", "{}"),
        ("theirs", "config.json", '{"model_type": "vit"}'),
        ("empty", "notes.txt", ""),
        ("test_vit", "notes.txt", ""),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    found = {name: source_of(name) for name in ("saved", "theirs", "empty", "test_vit", "nope", "hf-config:theirs")}
    kinds = {name: source.kind for name, source in found.items()}
    assert kinds == {
        "saved": "saved",
        "theirs": "transformers",
        "empty": "saved",
        "test_vit": "timm",
        "nope": "timm",
        "hf-config:theirs": "transformers",
    }
    weighted = [name for name, source in found.items() if source.weighted(False, None)]
    assert weighted == ["saved", "theirs", "empty"]
    hub, folder = source_of("hf:owner/name@v2"), source_of("local-dir:theirs")
    assert (hub.kind, hub.place, hub.revision, hub.local) == ("transformers", "owner/name", "v2", False)
    assert (folder.kind, folder.place, folder.local) == ("timm-hub", "theirs", True)
    assert not source_of("hf-hub:owner/name").local
    for name, said in (("hf:", "names no model"), ("hf:./absent", "is not a folder"), ("hf:saved", "no config.json")):
        with pytest.raises(TokensieveError, match=said):
            source_of(name)
    with pytest.raises(TokensieveError, match="unknown model 'test_vitt', did you mean 'test_vit'"):
        source_of("test_vitt").check()
