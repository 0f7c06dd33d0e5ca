"""Saved models come back the same anywhere, and whatever goes wrong is one clear sentence that loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.engine import apply as engine
from tokensieve.models import checkpoint
from tokensieve.models.checkpoint import WEIGHTS_NAME
from tokensieve.models.source import CONFIG_NAME

SPECS = ["bat:keep=0.6", "tosa:keep=0.5", "tome:r=2+tosa:keep=0.5:score=own", "evit:sites=[1,2]:keep=[0.9,0.5]"]


def tiny(**options: Any) -> nn.Module:
    options = {"img_size": 64, "depth": 4, "num_classes": 3} | options
    return timm.create_model("deit_tiny_patch16_224", **options).eval()


def fitted(model: nn.Module) -> nn.Module:
    """Learned selectors as if they had been trained, so that nothing warns."""
    for name, buffer in model.named_buffers():
        if name.endswith("fitted"):
            buffer.fill_(True)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    return ts.save(ts.apply(tiny(), "bat:keep=0.6"), tmp_path / "saved")


def said_by(error: pytest.ExceptionInfo[ts.TokensieveError]) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_a_saved_model_comes_back_the_same(spec: str, tmp_path: Path, images: Tensor) -> None:
    model = fitted(ts.apply(tiny(), spec))
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    ts.save(model, tmp_path / "saved")
    assert sorted(contents(tmp_path)) == ["saved/model.safetensors", "saved/tokensieve.json"]
    again = ts.load(tmp_path / "saved")
    assert ts.applied(again) == ts.applied(model) == ts.parse(spec)
    assert not again.training and torch.equal(again(images), model(images))


def test_a_dense_model_can_be_saved(tmp_path: Path, images: Tensor) -> None:
    model = tiny()
    again = ts.load(ts.save(model, tmp_path / "saved"))
    assert not ts.is_applied(again) and torch.equal(again(images), model(images))


def test_the_fill_is_saved(tmp_path: Path, images: Tensor) -> None:
    model = ts.apply(tiny(), ts.TopK(keep=0.5), fill="mean")
    again = ts.load(ts.save(model, tmp_path / "saved"))
    assert torch.equal(again.forward_features(images), model.forward_features(images))
    other = ts.apply(ts.remove(model), ts.TopK(keep=0.5), fill="last")
    assert not torch.equal(again.forward_features(images), other.forward_features(images))


def test_a_fresh_process_with_only_tokensieve_loads_it(saved: Path, images: Tensor, tmp_path: Path) -> None:
    save_file({"images": images}, tmp_path / "images.safetensors")
    code = (
        "import sys, tokensieve as ts\n"
        "from safetensors.torch import load_file, save_file\n"
        "model = ts.load(sys.argv[1])\n"
        "images = load_file(sys.argv[2])['images']\n"
        "save_file({'out': model(images).detach()}, sys.argv[3])\n"
        "print(ts.spell(ts.applied(model)))\n"
    )
    out = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), str(tmp_path / "images.safetensors"), str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "bat:keep=0.6"
    torch.testing.assert_close(load_file(out)["out"], ts.load(saved)(images).detach(), rtol=1e-5, atol=1e-6)


def test_nothing_is_pickled(saved: Path) -> None:
    for data in contents(saved).values():
        with pytest.raises((pickle.UnpicklingError, ValueError, IndexError, EOFError, AttributeError, KeyError)):
            pickle.loads(data)
    config = json.loads((saved / CONFIG_NAME).read_text())
    assert config["model"]["name"] == "deit_tiny_patch16_224"
    assert config["methods"][0]["name"] == "bat" and config["methods"][0]["version"] == ts.BAT.version


def test_an_existing_folder_is_never_replaced_unasked(saved: Path) -> None:
    before = contents(saved)
    with pytest.raises(ts.TokensieveError) as error:
        ts.save(ts.apply(tiny(), "tome:r=1"), saved)
    assert str(saved) in said_by(error) and "--force" in said_by(error)
    assert contents(saved) == before
    ts.save(ts.apply(tiny(), "tome:r=1"), saved, force=True)
    assert ts.applied(ts.load(saved)) == (ts.ToMe(r=1),)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_with_other_things_is_not_replaced_even_when_forced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ts.TokensieveError, match="holds other files and no saved model"):
        ts.save(ts.apply(tiny(), "tome:r=1"), tmp_path, force=True)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep me")
    for force in (False, True):
        with pytest.raises(ts.TokensieveError) as error:
            ts.save(ts.apply(tiny(), "tome:r=1"), tmp_path / "notes", force=force)
        assert "notes" in said_by(error)
    with pytest.raises(ts.TokensieveError, match="cannot save to"):
        ts.save(ts.apply(tiny(), "tome:r=1"), tmp_path / "notes" / "below")
    assert contents(tmp_path) == {"notes": b"keep me"}


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_failed_save_keeps_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    before = contents(saved)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(ts.TokensieveError) as error:
        ts.save(ts.apply(tiny(), "tome:r=1"), saved, force=True)
    assert "cannot save to" in said_by(error) and ("space" in said_by(error) or "ermission" in said_by(error))
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_interrupted_save_keeps_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved)

    def interrupt(weights: Any, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ts.save(ts.apply(tiny(), "tome:r=1"), saved, force=True)
    assert contents(saved) == before
    ts.save(ts.apply(tiny(), "tome:r=1"), saved, force=True)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_rename_that_fails_puts_the_old_one_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved)
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(ts.TokensieveError, match="what was there before is kept"):
        ts.save(ts.apply(tiny(), "tome:r=1"), saved, force=True)
    assert contents(saved) == before


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    change(config)
    (folder / CONFIG_NAME).write_text(json.dumps(config))


@pytest.mark.parametrize("size", [0, 7, 200, 5000, -1])
def test_truncated_weights(saved: Path, size: int) -> None:
    path = saved / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ts.TokensieveError) as error:
        ts.load(saved)
    assert WEIGHTS_NAME in said_by(error) and "truncated or no safetensors" in said_by(error)


def test_a_pickle_where_weights_should_be(saved: Path) -> None:
    torch.save(tiny().state_dict(), saved / WEIGHTS_NAME)
    with pytest.raises(ts.TokensieveError, match="no safetensors file"):
        ts.load(saved)


def test_weights_of_another_model(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    wider = ts.apply(tiny(embed_dim=96), "bat:keep=0.6").state_dict()
    save_file(dict(wider), saved / WEIGHTS_NAME)
    with pytest.raises(ts.TokensieveError, match=r"of another model: .* has shape .*, expected"):
        ts.load(saved)
    save_file({k: v for k, v in weights.items() if not k.startswith("head.")}, saved / WEIGHTS_NAME)
    with pytest.raises(ts.TokensieveError, match=r"of another model: it lacks head.bias .2 missing, 0 unknown"):
        ts.load(saved)
    save_file(weights | {"extra.weight": torch.zeros(1)}, saved / WEIGHTS_NAME)
    with pytest.raises(ts.TokensieveError, match=r"it has extra.weight, which the model does not"):
        ts.load(saved)


def test_weights_are_missing(saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    with pytest.raises(ts.TokensieveError, match=r"model.safetensors does not exist"):
        ts.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["methods"][0].update(name="bta"), "did you mean 'bat'"),
        (lambda c: c["methods"][0]["options"].update(kep=0.5), "no option 'kep', did you mean 'keep'"),
        (lambda c: c["methods"][0]["options"].update(keep=1.5), "keep must be a share"),
        (lambda c: c["methods"][0].update(version=99), "saved in version 99"),
        (lambda c: c["methods"][0].pop("version"), "not a saved method"),
        (lambda c: c["model"].update(name="no_such_vit"), "'no_such_vit'"),
        (lambda c: c.update(format=99), "has format 99, expected 1"),
        (lambda c: c.pop("model"), CONFIG_NAME),
        (lambda c: c.pop("methods"), CONFIG_NAME),
        (lambda c: c.update(fill="zero"), "fill must be"),
    ],
)
def test_a_config_that_was_changed(saved: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    edit_config(saved, change)
    with pytest.raises(ts.TokensieveError) as error:
        ts.load(saved)
    assert words in said_by(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": null}', "\x00\x01"])
def test_a_config_that_is_damaged(saved: Path, text: str) -> None:
    (saved / CONFIG_NAME).write_text(text)
    with pytest.raises(ts.TokensieveError, match=CONFIG_NAME):
        ts.load(saved)


def test_a_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ts.TokensieveError, match=r"is no saved model: it has no tokensieve.json"):
            ts.load(folder)


def test_a_model_that_timm_did_not_make(tmp_path: Path) -> None:
    with pytest.raises(ts.TokensieveError, match="cannot save Linear: it does not know its timm name"):
        ts.save(nn.Linear(2, 2), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_the_hub_mixin_round_trip_in_a_folder(tmp_path: Path, images: Tensor) -> None:
    model = ts.apply(tiny(), "bat:keep=0.6")
    ts.SievedModel(model).save_pretrained(tmp_path / "saved")
    assert {CONFIG_NAME, WEIGHTS_NAME} <= set(contents(tmp_path / "saved"))
    assert not (tmp_path / "saved" / ".tokensieve").exists()
    wrapped = ts.SievedModel.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(wrapped, ts.SievedModel)
    assert torch.equal(wrapped(images), model(images))
    plain = ts.from_pretrained(tmp_path / "saved")
    assert ts.applied(plain) == ts.applied(model) and torch.equal(plain(images), model(images))
    # Into the same folder again, as the mixin allows.
    ts.SievedModel(ts.apply(tiny(), "tome:r=1")).save_pretrained(tmp_path / "saved")
    assert ts.applied(ts.from_pretrained(tmp_path / "saved")) == (ts.ToMe(r=1),)


@pytest.mark.parametrize("source", ["somebody/no-such-model", "no such folder/with spaces/in it"])
def test_a_hub_that_cannot_be_reached(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ts.TokensieveError) as error:
        ts.from_pretrained(source, cache_dir=tmp_path)
    assert repr(source) in said_by(error) and "no local folder" in said_by(error)


def test_a_push_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ts.TokensieveError) as error:
        ts.push_to_hub(ts.apply(tiny(), "tome:r=1"), "somebody/something", token="hf_none")
    assert "'somebody/something'" in said_by(error)


def test_masks_that_stand_in_for_removal_are_saved_too(tmp_path: Path, images: Tensor) -> None:
    model = ts.apply(tiny(), "evit:keep=0.5:fuse=false", masked=True)
    loaded = ts.load(ts.save(model, tmp_path / "masked"))
    assert [site.reduction.masked for site in engine.sites(loaded)] == [True] * len(engine.sites(model))
    trained = [copy.train()(images).sum() for copy in (model, loaded)]
    assert torch.equal(*trained)
    assert not any(
        site.reduction.masked for site in engine.sites(ts.load(ts.save(ts.apply(tiny(), "evit"), tmp_path / "plain")))
    )
