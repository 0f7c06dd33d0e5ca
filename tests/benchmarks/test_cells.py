"""The grid, the presets, and results files that are resumed."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest

import tokensieve as ts
from benchmarks.cells import Cell, Setting, grid, with_rounds
from benchmarks.presets import PRESETS, TO_1025, cpu, gpu, highres
from benchmarks.speed import chosen_cells
from benchmarks.speed import options as speed_options
from benchmarks.store import Store, file_name, open_store, read_store
from tokensieve.errors import TokensieveError

HERE = {
    "device": "AMD EPYC 9B14 (2x)",
    "threads": 2,
    "cpu_kernels": True,
    "torch": "2.15.0+cpu",
    "timm": "1.0.31",
    "commit": "abc",
}


def options(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    speed_options(parser)
    return parser.parse_args(arguments)


def test_the_grid_is_every_combination() -> None:
    cells = grid(
        ["deit_tiny", "test_vit"], [224, 384], [1, 16], ["bf16", "float32"], ["eager", "compile"], ["tome:r=4,5"]
    )
    assert len(cells) == len({cell.id for cell in cells}) == 2**5
    assert cells[0].setting == Setting(
        model="deit_tiny_patch16_224", img_size=224, batch=1, dtype="bfloat16", engine="eager"
    )
    assert cells[0].methods == ("tome:r=4", "tome:r=5")
    assert cells[0].id == "model/deit_tiny_patch16_224/224px/b1/bfloat16/eager"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dtypes": ["int8"]}, "unknown dtype"),
        ({"engines": ["tpu"]}, "unknown engine"),
        ({"methods": ["batt"]}, "batt"),
    ],
)
def test_what_the_grid_does_not_know_is_refused(changed: dict[str, Any], reason: str) -> None:
    given = {"dtypes": ["fp32"], "engines": ["eager"], "methods": ["bat"]} | changed
    with pytest.raises(TokensieveError, match=reason):
        grid(["deit_tiny"], [224], [1], **given)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_cells_of_a_preset_have_different_names_and_methods_that_fit(name: str) -> None:
    cells = PRESETS[name]()
    assert len({cell.id for cell in cells}) == len(cells)
    assert chosen_cells(options("--preset", name)) == cells
    for cell in cells:
        assert [ts.spell(ts.parse(spec)) for spec in cell.methods] == list(cell.methods)


def test_presets_cover_what_the_goals_ask() -> None:
    seen = {(c.kind, c.setting.model.rpartition("_patch")[0], c.setting.img_size, c.setting.batch) for c in cpu()}
    for batch in (1, 16, 64):
        assert {("model", "deit_tiny", 224, batch), ("model", "deit_small", 224, batch)} <= seen
    assert {("model", "vit_base", 224, 16), ("model", "vit_base", 1024, 1)} <= seen
    assert {("operator", "vit_base", 224, 16), ("operator", "deit_small", 224, 16)} <= seen
    assert {("selector", "vit_base", size, batch) for size, batch in ((224, 4), (384, 4), (1024, 1))} <= seen
    assert {cell.setting.engine for cell in gpu()} == {"eager", "compile", "cudagraph"}
    assert set(highres()) <= set(cpu())


@pytest.mark.parametrize("spec", TO_1025)
def test_high_resolution_goes_from_4097_tokens_to_1025(spec: str) -> None:
    (method,) = ts.parse(spec)
    layout = ts.Layout(depth=12, dim=768, heads=12, prefix=1, class_token=True, grid=(64, 64))
    patches = 64 * 64
    for site in range(len(method.blocks(12))):
        left = method.remaining(patches, site, layout)
        patches = patches if method.returns == "block" else left
    assert left + layout.prefix == 1025


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "nothing to measure"),
        (("--preset", "cpu", "--batch", "4"), "leave out --batch"),
        (("--model", "deit_tinny"), "unknown model 'deit_tinny'"),
        (("--model", "deit_tiny", "--batch", "0"), "--batch must be 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(TokensieveError, match=reason):
        chosen_cells(options(*arguments))


def test_rounds_can_be_set_for_all_cells() -> None:
    assert {cell.rounds for cell in with_rounds(cpu(), 3)} == {3}
    assert with_rounds(cpu(), None) == cpu()
    with pytest.raises(TokensieveError, match="--rounds must be"):
        with_rounds(cpu(), 0)


def test_files_are_named_by_device_torch_and_dtype() -> None:
    assert file_name(HERE, "bfloat16", True) == "amd-epyc-9b14-2x-2-threads-torch2.15.0-bfloat16.json"
    assert file_name(HERE | {"device": "NVIDIA H200"}, "float32", False) == "nvidia-h200-torch2.15.0-float32.json"


def stored(folder: Path, **options: Any) -> Store:
    return open_store(folder, HERE | options.pop("here", {}), "bfloat16", on_cpu=True, **options)


def test_finished_cells_are_kept_and_more_methods_measured_with_those_they_had(tmp_path: Path) -> None:
    setting = Setting(model="test_vit", img_size=160, batch=1, dtype="bfloat16")
    one, two = Cell(setting=setting, methods=("bat",)), Cell(setting=setting, methods=("tome:r=4",))
    store = stored(tmp_path / "new")
    assert not store.done(one)
    store.put(one, {"rows": []})
    with pytest.raises(TokensieveError, match="exists"):
        stored(tmp_path / "new")
    again = stored(tmp_path / "new", resume=True)
    assert again.done(one) and not again.done(two)
    assert two.also(again.methods(two)).methods == ("bat", "tome:r=4")
    again.put(two, {"failed": "no memory"})
    assert not again.done(two) and again.methods(two) == ()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [store.path.name]
    assert stored(tmp_path / "new", force=True).cells == {}


@pytest.mark.parametrize(("key", "value"), [("threads", 4), ("cpu_kernels", False), ("timm", "1.1.0")])
def test_figures_of_another_machine_are_not_mixed_in(tmp_path: Path, key: str, value: Any) -> None:
    stored(tmp_path).write()
    if key == "threads":
        (tmp_path / file_name(HERE, "bfloat16", True)).rename(
            tmp_path / file_name(HERE | {key: value}, "bfloat16", True)
        )
    with pytest.raises(TokensieveError, match=f"was measured with {key}"):
        stored(tmp_path, here={key: value}, resume=True)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0}'])
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(TokensieveError, match="not a results file"):
        read_store(file)


def test_a_written_store_is_json_and_read_back_the_same(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.put(Cell(setting=Setting(model="m", img_size=1, batch=1), methods=("bat",)), {"rows": [{"S": 1.5}]})
    assert json.loads(store.path.read_text())["cells"]["model/m/1px/b1/float32/eager"]["rows"] == [{"S": 1.5}]
    back = read_store(store.path)
    assert (back.cells, back.environment, back.dtype, back.on_cpu) == (store.cells, HERE, "bfloat16", True)
