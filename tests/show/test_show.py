"""Pictures: what a run's events say about every patch, the drawing, the files, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageFont
from torch import nn

import tokensieve as ts
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.show import draw
from tokensieve.show.images import model_input, model_view, read_image
from tokensieve.show.maps import Row, SiteMap, State, choose, site_maps
from tokensieve.show.page import page
from tokensieve.show.run import class_names, show_rows
from tokensieve.show.sheet import sheet, wrapped
from tokensieve.show.write import write_rows
from tokensieve.tokens import algebra
from tokensieve.tokens.decision import Assignment, keep_only
from tokensieve.tokens.restore import returning
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.tokens.state import Tokens

GRID = (2, 4)


def start(batch: int = 1) -> Tokens:
    return Tokens.start(torch.randn(batch, 1 + 8, 4, generator=torch.Generator().manual_seed(0)), prefix=1)


def keep(*kept: int) -> torch.Tensor:
    return torch.tensor([kept])


def picture(height: int = 64, width: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def row(*maps: SiteMap, grid: tuple[int, int] = GRID) -> Row:
    return Row("bat:keep=0.5", "a.jpg", picture(), maps, grid, (9, 5), 9, "dense: cat 90.0%")


def pruning() -> SiteMap:
    tokens = algebra.apply(start(), keep_only(keep(0, 1, 2), 8), block=3, method="evit:keep=0.4")
    return site_maps(tokens.events, GRID)[0]


# --- maps -----------------------------------------------------------------------------------------------------------


def test_pruned_patches_stay_pruned() -> None:
    tokens = algebra.apply(start(), keep_only(keep(0, 2, 3, 5), 8), block=1, method="topk")
    tokens = algebra.apply(tokens, keep_only(keep(0, 3), 4), block=2, method="topk")
    first, second = site_maps(tokens.events, GRID)
    assert (first.before, first.after, second.before, second.after) == (8, 4, 4, 2)
    assert first.state is not None and second.state is not None
    assert first.state.tolist() == [[0, 3, 0, 0], [3, 0, 3, 3]]
    assert second.state.tolist() == [[0, 3, 3, 3], [3, 0, 3, 3]]
    assert second.describe() == "6 pruned"


def test_merged_groups_are_named_by_their_first_patch() -> None:
    decision = Assignment.from_index(torch.tensor([[2, 0, 2, 1, 0, 1, 3, 3]]), 4)
    tokens = algebra.apply(start(), decision, block=0, method="tome")
    (site,) = site_maps(tokens.events, GRID)
    assert site.group is not None
    assert site.group.tolist() == [[0, 1, 0, 3], [1, 3, 6, 6]]
    assert site.count(State.MERGED) == 8 and site.merged_tokens == 4
    assert site.describe() == "8 patches merged into 4"


def test_skipped_patches_come_back_and_may_then_be_pruned() -> None:
    tokens = algebra.apply(start(), keep_only(keep(0, 1, 2, 3), 8, until="block"), block=0, point="before")
    tokens = returning(tokens, 1)
    tokens = algebra.apply(tokens, keep_only(keep(2, 3, 4, 5), 8), block=1, point="before")
    first, second = site_maps(tokens.events, GRID)
    assert first.state is not None and second.state is not None
    assert first.state.tolist() == [[0] * 4, [2] * 4]
    assert second.state.tolist() == [[3, 3, 0, 0], [0, 0, 3, 3]]
    assert (second.before, second.after) == (8, 4)


def test_pruning_while_others_skip() -> None:
    tokens = algebra.apply(start(), keep_only(keep(0, 1, 2, 3), 8, until="block"), block=0, point="before")
    tokens = algebra.apply(tokens, keep_only(keep(0, 1), 4), block=0, point="middle")
    tokens = returning(tokens, 1)
    tokens = algebra.apply(tokens, keep_only(keep(0, 1, 2), 6), block=1, point="before")
    _, during, after = site_maps(tokens.events, GRID)
    assert during.state is not None and after.state is not None
    assert during.state.tolist() == [[0, 0, 3, 3], [2] * 4]
    assert during.describe() == "4 skipped, 2 pruned"
    assert (after.before, after.after) == (6, 3)
    assert after.state.tolist() == [[0, 0, 3, 3], [0, 3, 3, 3]]


def test_merged_tokens_may_skip() -> None:
    tokens = algebra.apply(start(), Assignment.from_index(torch.arange(8)[None] // 2, 4), block=0)
    tokens = algebra.apply(tokens, keep_only(keep(1, 2), 4, until="block"), block=1, point="before")
    tokens = returning(tokens, 2)
    tokens = algebra.apply(tokens, keep_only(keep(0, 1, 2), 4), block=2)
    _, skipping, last = site_maps(tokens.events, GRID)
    assert skipping.state is not None and last.state is not None
    assert skipping.state.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert (skipping.before, skipping.after, last.before, last.after) == (4, 2, 4, 3)
    assert last.state.tolist() == [[1, 1, 1, 1], [1, 1, 3, 3]]


def test_soft_assignment_has_no_map() -> None:
    tokens = algebra.apply(start(), SoftAssignment(matrix=torch.full((1, 3, 8), 1 / 8)), block=2, method="soft")
    tokens = algebra.apply(tokens, keep_only(keep(0, 1), 3), block=3)
    first, second = site_maps(tokens.events, GRID)
    assert first.state is None and second.state is None
    assert (first.before, first.after, second.after) == (8, 3, 2)
    assert "soft" in first.describe()
    assert sheet([row(first)]).size == sheet([row(pruning())]).size


def test_sites_where_nothing_happens_are_left_out() -> None:
    tokens = algebra.apply(start(), keep_only(torch.arange(8)[None], 8), block=0)
    assert site_maps(tokens.events, GRID) == []


def test_wrong_grid_is_refused() -> None:
    tokens = algebra.apply(start(), keep_only(keep(0, 1), 8), block=0)
    with pytest.raises(TokensieveError, match="grid of 3 x 3"):
        site_maps(tokens.events, (3, 3))


def test_every_image_of_a_batch_has_its_own_map() -> None:
    kept = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    tokens = algebra.apply(start(2), keep_only(kept, 8), block=0)
    states = [site_maps(tokens.events, GRID, image)[0].state for image in range(2)]
    assert [None if s is None else s[0, 0] for s in states] == [State.ATTENDS, State.PRUNED]


def test_choose_spreads_evenly_or_takes_blocks() -> None:
    maps = [SiteMap(block, "middle", "tome", 8, 7) for block in range(12)]
    assert [site.block for site in choose(maps)] == [0, 2, 4, 7, 9, 11]
    assert [site.block for site in choose(maps[:6])] == list(range(6))
    assert [site.block for site in choose(maps, [3, 1])] == [1, 3]
    assert choose(maps, [12]) == []


# --- drawing --------------------------------------------------------------------------------------------------------


def test_panel_shows_each_state() -> None:
    grid = (1, 4)
    state = np.array([[State.ATTENDS, State.MERGED, State.SKIPPED, State.PRUNED]], dtype=np.uint8)
    shot = picture(64, 256)
    drawn = draw.site_panel(shot, SiteMap(0, "middle", "x", 4, 2, state, np.arange(4).reshape(grid)))
    fitted = draw.fit(shot, grid)
    cell = drawn.shape[1] // 4
    assert drawn.shape == fitted.shape and drawn.dtype == np.uint8
    assert np.array_equal(drawn[:, :cell], fitted[:, :cell])
    assert drawn[:, 3 * cell :].mean() < 60
    blue = drawn[:, 2 * cell : 3 * cell].reshape(-1, 3).mean(axis=0)
    assert blue[2] > blue[0] + 30


def test_group_is_filled_with_its_mean_colour_and_outlined() -> None:
    group = np.array([[0, 1], [2, 0]])
    state = np.array([[State.MERGED, State.ATTENDS], [State.ATTENDS, State.MERGED]], dtype=np.uint8)
    shot = np.zeros((2, 2, 3), dtype=np.uint8)
    shot[0, 0], shot[1, 1] = (200, 0, 100), (0, 100, 100)
    shot = shot.repeat(210, axis=0).repeat(210, axis=1)
    drawn = draw.site_panel(shot, SiteMap(0, "middle", "x", 4, 3, state, group))
    assert drawn[105, 105].tolist() == pytest.approx([100, 50, 100], abs=2)
    assert drawn[105, 105].tolist() == drawn[315, 315].tolist()
    assert drawn[0, 0].tolist() == list(draw.group_colour(0)) == drawn[419, 419].tolist()


@pytest.mark.parametrize("grid", [(14, 14), (7, 3), (3, 20), (64, 64), (1, 1), (200, 10)])
def test_panels_keep_the_proportions_of_the_grid(grid: tuple[int, int]) -> None:
    state = np.zeros(grid, dtype=np.uint8)
    group = np.arange(state.size).reshape(grid)
    width, height = draw.panel_size(grid)
    drawn = draw.site_panel(picture(), SiteMap(0, "middle", "x", state.size, 1, state, group))
    assert drawn.shape == (height, width, 3)
    assert width * grid[0] == height * grid[1]
    sheet([row(SiteMap(0, "after", "a-method-of-a-long-name", state.size, 1, state, group), grid=grid)])


def test_sheet_grows_with_rows_and_refuses_too_many() -> None:
    one, two = sheet([row(pruning())]), sheet([row(pruning()), row(pruning())])
    assert two.width == one.width and two.height > one.height
    with pytest.raises(TokensieveError, match="too many for one picture"):
        sheet([row()] * 100)


def test_text_is_wrapped_and_cut() -> None:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    lines = wrapped("one two " + "x" * 90, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert lines[-1].endswith("…")


class Balance(HTMLParser):
    """Collects open tags and what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escaped() -> None:
    evil = replace(row(pruning()), image="<b>&.jpg", caption="a <script> b")
    parser = Balance()
    document = page([evil], "x < y")
    parser.feed(document)
    assert parser.open == []
    assert parser.sources and all(source.startswith("data:image/") for source in parser.sources)
    assert "<script>" not in document and "x &lt; y" in document


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((5, 7), 65535, dtype=np.uint16)).save(file)
    else:
        Image.new("RGB", (7, 5), "white").convert(mode).save(file)
    image = read_image(file)
    assert image.mode == "RGB" and image.size == (7, 5)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 8)


def corrupt(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"no picture")
    return folder / "a.png"


def truncated(folder: Path) -> Path:
    file = folder / "a.jpg"
    Image.fromarray(picture()).save(file)
    file.write_bytes(file.read_bytes()[:400])
    return file


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (corrupt, "cannot read"),
        (truncated, "cannot read"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "none.jpg", "no image"),
    ],
)
def test_bad_images_are_one_sentence(make: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TokensieveError, match=reason) as raised:
        read_image(make(tmp_path))
    assert "\n" not in str(raised.value)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.html"])
def test_writing_never_overwrites_unasked(name: str, tmp_path: Path) -> None:
    output = tmp_path / name
    write_rows([row(pruning())], output, "title")
    with pytest.raises(TokensieveError, match="exists"):
        write_rows([row(pruning())], output, "title")
    write_rows([row(pruning())], output, "title", force=True)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "reason"), [("a.gif", "must end in"), ("no/a.png", "does not exist")])
def test_bad_outputs_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TokensieveError, match=reason):
        write_rows([row()], tmp_path / name, "title")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "a.png"
    output.write_bytes(b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(TokensieveError, match="No space left"):
        write_rows([row()], output, "title", force=True)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


# --- running --------------------------------------------------------------------------------------------------------


def small(**changes: object) -> nn.Module:
    settings: dict[str, object] = {"img_size": (64, 96), "embed_dim": 48, "num_heads": 3, "depth": 4, "num_classes": 5}
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **(settings | changes)).eval()
    return model


def photograph() -> Image.Image:
    return Image.fromarray(picture(6, 10)).resize((200, 120), Image.Resampling.BICUBIC)


def test_the_view_is_what_the_model_sees() -> None:
    config = data_config(small())
    assert config["input_size"] == (3, 64, 96)
    view = model_view(photograph(), config)
    assert view.shape == (320, 480, 3)
    plain = model_input(photograph(), {**config, "mean": (0.0,) * 3, "std": (1.0,) * 3})[0]
    shrunk = np.asarray(Image.fromarray(view).resize((96, 64), Image.Resampling.BOX), dtype=float) / 255
    assert abs(shrunk - plain.permute(1, 2, 0).numpy()).mean() < 0.05


def test_rows_come_image_by_image_and_the_model_stays_as_it_was() -> None:
    model = small()
    x = torch.randn(1, 3, 64, 96)
    before = model(x)
    images = [("a.jpg", photograph()), ("b.jpg", photograph())]
    variants = ts.sweep("tome:r=2,3") + ts.sweep("tome:r=2+topk:keep=0.5:sites=[2]")
    names = ["ant", "bee", "cat", "dog", "elk"]
    rows = show_rows(model, images, variants, data_config(model), names=names)
    assert [r.image for r in rows] == ["a.jpg"] * 3 + ["b.jpg"] * 3
    assert [r.method for r in rows[:3]] == [ts.spell(variant) for variant in variants]
    assert all(r.grid == (4, 6) and r.dense == 25 and len(r.tokens) == 4 for r in rows)
    assert rows[0].maps[0].before == 24 and rows[0].maps[0].after == 22
    assert [site.block for site in rows[2].maps].count(2) == 2
    assert rows[0].caption.startswith("dense: ") and "reduced: " in rows[0].caption
    assert not ts.is_applied(model) and torch.equal(model(x), before)
    assert sheet(rows).height > 0


def test_blocks_are_those_of_any_method() -> None:
    model, images = small(), [("a.jpg", photograph())]
    variants = [ts.parse("topk:keep=0.5:sites=[1]"), ts.parse("topk:keep=0.5:sites=[2]")]
    rows = show_rows(model, images, variants, data_config(model), blocks=[1])
    assert [len(r.maps) for r in rows] == [1, 0]
    with pytest.raises(TokensieveError, match="--blocks names 3"):
        show_rows(model, images, variants, data_config(model), blocks=[1, 3])


def test_a_model_with_methods_is_shown_as_it_is() -> None:
    model = ts.apply(small(), "tome:r=2")
    (only,) = show_rows(model, [("a.jpg", photograph())], [], data_config(model))
    assert only.method == "tome:r=2" and only.maps and ts.is_applied(model)
    with pytest.raises(TokensieveError, match="has methods already"):
        show_rows(model, [("a.jpg", photograph())], [ts.parse("tome:r=3")], data_config(model))


def test_nothing_to_show_and_wrong_channels_are_refused() -> None:
    model = small()
    with pytest.raises(TokensieveError, match="at least one --method"):
        show_rows(model, [("a.jpg", photograph())], [], data_config(model))
    grey = small(in_chans=1)
    with pytest.raises(TokensieveError, match="takes 1 channels"):
        show_rows(grey, [("a.jpg", photograph())], [ts.parse("tome:r=3")], data_config(grey))


def test_class_names(tmp_path: Path) -> None:
    file = tmp_path / "map.txt"
    file.write_text("n01440764\nn02123045\n")
    assert class_names(file, 2) == ["tench", "tabby"]
    file.write_text("tench\ncat\n")
    assert class_names(file, 2) == ["tench", "cat"]
    with pytest.raises(TokensieveError, match="names 2 classes and the model has 3"):
        class_names(file, 3)
    with pytest.raises(TokensieveError, match="cannot read the class map"):
        class_names(tmp_path / "none.txt", 2)
