"""MACs, oracle, knob, memory, timing, fidelity and result files."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import tokensieve as ts
from tokensieve.measure import memory, speed
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.fidelity import compare
from tokensieve.measure.macs import count
from tokensieve.measure.oracle import oracle
from tokensieve.measure.plot import pareto, series
from tokensieve.measure.results import Row, Speed, open_results
from tokensieve.measure.solver import solve
from tokensieve.models import load as model_module
from tokensieve.models.load import create, has_weights, load_weights, share_weights
from tokensieve.models.options import ModelOptions


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224").eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit").eval()


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        (None, 1.254),
        ("tome:r=8", 0.92),
        ("tome:r=13", 0.73),
        ("tome:r=16", 0.62),
        ("evit:keep=0.9", 1.09),
        ("evit:keep=0.7", 0.82),
        ("evit:keep=0.5", 0.63),
        ("topk:keep=0.7", 0.81),
        ("topk:keep=0.5", 0.62),
    ],
)
def test_macs_equal_the_formula_and_the_published_figures(deit: nn.Module, spec: str | None, published: float) -> None:
    model = deit if spec is None else reduce(deit, ts.parse(spec))
    report = count(model, torch.randn(1, 3, 224, 224))
    c = 192
    formula = 196 * 768 * c + 1000 * c
    formula += sum(4 * b.attended * c * c + 2 * b.attended**2 * c + 8 * b.processed * c * c for b in report.blocks)
    assert report.total == pytest.approx(formula, rel=1e-3)
    assert report.total / 1e9 == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("spec", ["tome:r=8", "evit:keep=0.5", "tosa:keep=0.5:score=own", "tome:r=4+evit:keep=0.7"])
def test_the_oracle_runs_on_the_token_counts_of_the_reduced_model(small: nn.Module, spec: str) -> None:
    x = torch.randn(2, 3, 160, 160)
    report = count(reduce(small, ts.parse(spec)), x)
    free = oracle(small, report)
    seen: list[tuple[int, int]] = []
    for block in free.blocks:  # type: ignore[union-attr]
        inner = block.block
        inner.attn.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], 0)))
        inner.mlp.register_forward_hook(lambda _, args, out: seen.append((0, args[0].shape[1])))
    assert free(x).shape == small(x).shape
    attended, processed = [a for a, _ in seen if a], [p for _, p in seen if p]
    assert attended == [b.attended for b in report.blocks]
    assert processed == [b.processed for b in report.blocks]


def test_the_oracle_of_the_dense_counts_is_the_dense_model(small: nn.Module) -> None:
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(oracle(small, count(small, x))(x), small(x))


def test_copies_share_their_weights(small: nn.Module) -> None:
    copied = share_weights(small)
    assert copied is not small
    assert all(a is b for a, b in zip(copied.parameters(), small.parameters(), strict=True))


@pytest.mark.parametrize("spec", ["evit", "tome"])
def test_solving_for_a_share_reaches_it(small: nn.Module, spec: str) -> None:
    x = torch.randn(1, 3, 160, 160)
    (method,) = solve(small, ts.parse(spec), 0.75, x)
    share = count(reduce(small, (method,)), x).total / count(small, x).total
    assert share == pytest.approx(0.75, abs=0.02)


def test_a_share_that_cannot_be_reached_is_refused(small: nn.Module) -> None:
    with pytest.raises(ts.TokensieveError, match="cannot reach"):
        solve(small, ts.parse("evit"), 0.01, torch.randn(1, 3, 160, 160))


def test_live_tensors_count_what_is_alive_at_once() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        first = x + 1
        second = first + 1
        del first
        return second.view(-1) + 1

    assert memory.peak(run, torch.zeros(1000)) == 2 * 4000


def test_timings_are_interleaved_and_ratios_paired() -> None:
    calls: list[str] = []
    variants: dict[str, Any] = {name: (lambda x, name=name: calls.append(name)) for name in ("a", "b")}
    timings = speed.measure(variants, torch.zeros(4, 1), rounds=3, warmup=1, min_time=0.0)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert timings["a"].batch == 4
    assert len(timings["a"].seconds) == 3


def test_speedup_and_noise() -> None:
    drifting = speed.Timing((1.0, 2.0, 4.0), 8)
    twice = speed.Timing((0.5, 1.0, 2.0), 8)
    assert twice.speedup(drifting) == 2.0
    assert twice.images_per_second == 8.0
    assert speed.noisy(drifting)
    assert not speed.noisy(speed.Timing((1.0, 1.01, 1.02), 8))


def test_fidelity_of_the_model_itself_and_of_another() -> None:
    logits = torch.eye(6) * 5
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    same = compare(lambda x: x, lambda x: x, [(logits, labels)])
    assert (same.images, same.agreement) == (6, 100.0)
    assert same.top1 == pytest.approx(100 * 5 / 6)
    assert same.kl == pytest.approx(0.0, abs=1e-9)
    other = compare(lambda x: x.roll(1, 1), lambda x: x, [(logits, labels)])
    assert other.agreement == 0.0
    assert other.kl > 1
    assert compare(lambda x: x, lambda x: x, [(logits, torch.full((6,), -1))]).top1 is None


def row(name: str, gmacs: float = 1.0) -> Row:
    entry = Speed(16, 100.0, 99.0, 101.0, 1.5, 1.6, 0.9, 0.95, 1000, False)
    return Row(name, gmacs, 2.0, 10, 50.0, 80.0, 90.0, 0.1, [entry])


def test_results_are_written_resumed_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    results = open_results(file, {"model": "m", "mean": (0.5,)})
    results.put(row("dense"))
    results.put(row("tome:r=4"))
    assert json.loads(file.read_text())["rows"][1]["speed"][0]["S"] == 1.5
    assert "S_over_F_b16" in file.with_suffix(".csv").read_text().splitlines()[0]
    assert open_results(file, {"model": "m", "mean": (0.5,)}, resume=True).rows == results.rows
    with pytest.raises(ts.TokensieveError, match="exists"):
        open_results(file, {"model": "m"})
    with pytest.raises(ts.TokensieveError, match="measured with model"):
        open_results(file, {"model": "other", "mean": (0.5,)}, resume=True)
    with pytest.raises(ts.TokensieveError, match="cannot write"):
        open_results(tmp_path / "absent" / "r.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.json"]


def test_a_plot_is_written(tmp_path: Path) -> None:
    pareto([row("dense", 2.0), row("tome:r=4"), row("tome:r=8", 0.8)], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert series("tome:r=4+tosa:keep=0.5") == "tome+tosa"
    assert series("tosa:keep=0.5:score=own") == "tosa:score=own" != series("tosa:keep=0.5")
    assert series("bat:keep=[0.9,0.8]:sites=[1,2]+tome:r=[1,2]") == "bat:sites=[1,2]+tome"


def test_a_plot_of_many_methods_names_them_all_beside_its_panels(tmp_path: Path) -> None:
    size = []
    for number in (5, 30):
        pareto([row(f"method-{index}") for index in range(number)], tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            size.append(picture.size)
    assert size[1][0] > size[0][0] and size[1][1] == size[0][1]


def test_checkpoints_that_cannot_be_loaded_say_why(small: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = share_weights(small)
    good = tmp_path / "good.safetensors"
    save_file({k: v.contiguous() for k, v in small.state_dict().items()}, good)
    load_weights(model, str(good))
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:5000])
    torch.save(small.state_dict(), tmp_path / "good.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:5000])
    torch.save(small, tmp_path / "pickle.pth")
    save_file({"head.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "code-ran",)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": small.state_dict(), "more": Evil()}, tmp_path / "evil.pth")
    for name, reason in [
        ("cut.safetensors", "truncated"),
        ("cut.pth", "truncated"),
        ("pickle.pth", "pickle that holds more than weights"),
        ("other.safetensors", "another model"),
        ("absent.pth", "is not a file"),
        ("list.pth", "holds no weights"),
        ("text.pth", "holds no weights"),
        ("empty.pth", r"is truncated or damaged: fetch it again"),
        ("evil.pkl", "unpickling it could run code"),
        ("evil.pth", "unpickling it could run code"),
    ]:
        with pytest.raises(ts.TokensieveError, match=reason) as error, warnings.catch_warnings():
            warnings.simplefilter("error")  # one sentence, and no warning of torch beside it
            load_weights(model, str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "code-ran").exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(model_module, "get_session", no_answer)
    monkeypatch.setattr(model_module, "snapshot_download", no_answer)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hf-hub:owner/model@main"])
def test_a_hub_that_does_not_answer_is_asked_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: object, **__: object) -> None:
        pytest.fail("timm was asked, whose client tries again for a minute")

    monkeypatch.setattr(timm, "create_model", too_late)
    with pytest.raises(ts.TokensieveError, match="does not answer and its cache does not have it; give the weights"):
        create(ModelOptions(name, pretrained=True))


def test_what_the_hub_has_in_its_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer() -> None:
        raise OSError

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(model_module, "get_session", no_answer)
    monkeypatch.setattr(model_module, "snapshot_download", lambda *given, **options: asked.append((*given, options)))
    monkeypatch.setattr(timm, "create_model", lambda name, **_: nn.Identity())
    assert isinstance(create(ModelOptions("hf-hub:owner/model@v2")), nn.Identity)
    assert asked == [("owner/model", {"revision": "v2", "local_files_only": True})]


def test_weights_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(ts.TokensieveError, match="both are given"):
        create(ModelOptions("test_vit", pretrained=True, checkpoint=str(tmp_path / "absent.pth")))
    with pytest.raises(ts.TokensieveError, match="is not a file"):
        create(ModelOptions("test_vit", checkpoint=str(tmp_path / "absent.pth")))


def test_a_folder_may_be_called_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_vit").mkdir()
    assert not ts.is_applied(create(ModelOptions("test_vit"))) and not has_weights(ModelOptions("test_vit"))
    ts.save(ts.apply(create(ModelOptions("test_vit")), "tome:r=2"), tmp_path / "saved")
    assert ts.is_applied(create(ModelOptions("saved"))) and has_weights(ModelOptions("saved"))
    with pytest.raises(ts.TokensieveError, match="leave --img-size out"):
        create(ModelOptions("saved", img_size=64))
    with pytest.raises(ts.TokensieveError, match=r"is no saved model|unknown model"):
        create(ModelOptions(""))


@pytest.mark.parametrize("name", ["test_vit.nope", "local-dir:/nope"])
def test_models_that_timm_cannot_make(name: str) -> None:
    with pytest.raises(ts.TokensieveError, match="cannot create model"):
        create(ModelOptions(name, pretrained=True))
