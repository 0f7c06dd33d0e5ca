"""What the core carries for methods that do not exist yet: made-up ones through ``ts.apply`` on a tiny ViT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.attention.kernel import MASK_EPSILON
from tokensieve.ops.rows import split_top
from tokensieve.tokens.decision import Decision, Until, keep_only, ragged

DEPTH, PATCHES = 5, 16


@dataclass(frozen=True, kw_only=True)
class MadeUp(ts.Method):
    """A method put together from its parts in the test that uses it."""

    at: tuple[int, ...]
    where: str = "middle"
    stays: int | None = None
    decide: Callable[[ts.View], Decision] = field(compare=False)
    back: Until = "end"
    reads: frozenset[str] = frozenset()
    part: Callable[[ts.Layout], nn.Module] | None = None
    proportional: bool = False

    @property
    def point(self) -> str:  # type: ignore[override]
        return self.where

    @property
    def returns(self) -> Until:
        return self.back

    def blocks(self, depth: int) -> tuple[int, ...]:
        return self.at

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2 if self.stays is None else min(self.stays, patches)

    def needs(self, layout: ts.Layout) -> frozenset[Any]:
        return self.reads

    def module(self, layout: ts.Layout) -> nn.Module | None:
        return None if self.part is None else self.part(layout)

    def assign(self, view: ts.View) -> Decision:
        return self.decide(view)


@dataclass(frozen=True, kw_only=True)
class MadeUpToo(MadeUp):
    """The same under another name, for compositions."""


@dataclass(frozen=True, kw_only=True)
class MadeUpRagged(MadeUp):
    """The same for counts that differ between images."""

    ragged: ClassVar[bool] = True


def tiny(**changes: Any) -> nn.Module:
    torch.manual_seed(1)
    options: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": DEPTH, "num_heads": 2, "num_classes": 4}
    model = timm.create_model("vit_tiny_patch16_224", **(options | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def odd(view: ts.View) -> Tensor:
    return torch.arange(1, view.count, 2).expand(view.x.shape[0], -1)


def every_second(until: Until) -> Callable[[ts.View], Decision]:
    return lambda view: keep_only(odd(view), view.count, until)


def halves(block: nn.Module, x: Tensor, then: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """A timm block by hand, with something in the middle."""
    x = then(x + block.attn(block.norm1(x)))
    return x + block.mlp(block.norm2(x))


def embedded(model: nn.Module, images: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def stay(x: Tensor) -> Tensor:
    """Class token and every second patch."""
    return x[:, [0, *range(2, x.shape[1], 2)]]


@torch.no_grad()
def features(model: nn.Module, images: Tensor) -> Tensor:
    return model.forward_features(images)


def counts(model: nn.Module, images: Tensor) -> list[tuple[int, int]]:
    return [(s.attended, s.processed) for s in ts.trace(model, images).stages]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("before", [(17, 17), (9, 9), (9, 9), (9, 9), (9, 9)]),
        ("middle", [(17, 17), (17, 9), (9, 9), (9, 9), (9, 9)]),
        ("after", [(17, 17), (17, 17), (9, 9), (9, 9), (9, 9)]),
    ],
)
@torch.no_grad()
def test_a_site_before_in_the_middle_of_and_after_a_block(
    images: Tensor, where: str, expected: list[tuple[int, int]]
) -> None:
    dense = tiny()
    model = ts.apply(tiny(), MadeUp(at=(1,), where=where, decide=every_second("end")), fill="last")
    assert counts(model, images) == expected
    blocks = dense.blocks
    x = blocks[0](embedded(dense, images))
    gone = x
    if where == "before":
        x = blocks[1](stay(x))
    elif where == "middle":
        gone = x + blocks[1].attn(blocks[1].norm1(x))
        x = halves(blocks[1], x, stay)
    else:
        gone = blocks[1](x)
        x = stay(gone)
    for block in blocks[2:]:
        x = block(x)
    whole = gone.clone()
    whole[:, [0, *range(2, 17, 2)]] = x
    torch.testing.assert_close(features(model, images), dense.norm(whole), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        ("block", [(17, 17), (17, 9), (17, 17), (17, 17), (17, 17)]),
        (4, [(17, 17), (17, 9), (9, 9), (9, 9), (17, 17)]),
        ("end", [(17, 17), (17, 9), (9, 9), (9, 9), (9, 9)]),
    ],
)
@torch.no_grad()
def test_parking_for_one_block_until_a_block_and_for_good(
    images: Tensor, back: Until, expected: list[tuple[int, int]]
) -> None:
    model = ts.apply(tiny(), MadeUp(at=(1,), back=back, decide=every_second(back)))
    assert counts(model, images) == expected
    dense = tiny()
    x = dense.blocks[0](embedded(dense, images))
    before = x + dense.blocks[1].attn(dense.blocks[1].norm1(x))
    x = halves(dense.blocks[1], x, stay)
    for number in (2, 3, 4):
        if number == {"block": 2, "end": 9}.get(back, back):
            whole = before.clone()
            whole[:, [0, *range(2, 17, 2)]] = x
            x = whole
        x = dense.blocks[number](x)
    if back == "end":
        whole = before.clone()
        whole[:, [0, *range(2, 17, 2)]] = x
        x = whole
    torch.testing.assert_close(features(model, images), dense.norm(x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_skipping_only_the_attention(images: Tensor) -> None:
    model = ts.apply(tiny(), MadeUp(at=(1,), where="before", back="attention", decide=every_second("attention")))
    assert counts(model, images)[1] == (9, 17)
    dense = tiny()
    x = dense.blocks[0](embedded(dense, images))
    inner = stay(x)
    x[:, [0, *range(2, 17, 2)]] = inner + dense.blocks[1].attn(dense.blocks[1].norm1(inner))
    x = x + dense.blocks[1].mlp(dense.blocks[1].norm2(x))
    for block in dense.blocks[2:]:
        x = block(x)
    torch.testing.assert_close(features(model, images), dense.norm(x), rtol=0, atol=1e-10)


def test_skipping_in_neighbouring_blocks_returns_on_time(images: Tensor) -> None:
    # What skips block 1 leaves before, and returns after, what skips block 2 has left.
    model = ts.apply(tiny(), MadeUp(at=(0, 1), where="after", back="block", decide=every_second("block")))
    assert counts(model, images) == [(17, 17), (9, 9), (13, 13), (17, 17), (17, 17)]


@torch.no_grad()
def test_soft_assignment_with_its_own_way_back(images: Tensor) -> None:
    pool = torch.eye(4, dtype=torch.float64).repeat_interleave(4, dim=1) / 4

    def decide(view: ts.View) -> Decision:
        return ts.SoftAssignment(matrix=pool.expand(3, -1, -1), restore=lambda y, before: before + 4 * pool.T @ y)

    model = ts.apply(tiny(), MadeUp(at=(2,), stays=4, where="after", decide=decide))
    assert counts(model, images)[3:] == [(5, 5), (5, 5)]
    dense = tiny()
    x = embedded(dense, images)
    for block in dense.blocks[:3]:
        x = block(x)
    small = torch.cat([x[:, :1], pool @ x[:, 1:]], dim=1)
    for block in dense.blocks[3:]:
        small = block(small)
    whole = torch.cat([small[:, :1], x[:, 1:] + 4 * pool.T @ small[:, 1:]], dim=1)
    torch.testing.assert_close(features(model, images), dense.norm(whole), rtol=0, atol=1e-10)


@torch.no_grad()
def test_pruning_inside_a_soft_assignment_and_returning(images: Tensor) -> None:
    pool = torch.eye(4, dtype=torch.float64).repeat_interleave(4, dim=1) / 4
    soft = MadeUp(at=(1,), stays=4, where="after", decide=lambda view: ts.SoftAssignment(matrix=pool.expand(3, -1, -1)))
    skip = MadeUpToo(at=(2,), where="after", back="block", decide=every_second("block"))
    model = ts.apply(tiny(), [soft, skip])
    assert counts(model, images) == [(17, 17), (17, 17), (5, 5), (3, 3), (5, 5)]
    assert features(model, images).shape == (3, 17, 16)


def linear_scores(layout: ts.Layout) -> nn.Module:
    return nn.Linear(layout.dim, 1)


def by_learned_score(view: ts.View) -> Decision:
    score = view.module(view.x).squeeze(2)
    keep, dropped = split_top(score, view.keep)
    kept = Tensor.sigmoid(score)
    moved = dropped
    return ts.Assignment(keep=keep, moved=moved, onto=torch.zeros_like(moved), weight=kept)


def test_a_learned_part_is_in_the_state_dict_and_gets_gradients(images: Tensor, tmp_path: Path) -> None:
    method = MadeUp(at=(1, 3), part=linear_scores, decide=by_learned_score)
    dense_keys = set(tiny().state_dict())
    model = ts.apply(tiny(), method)
    added = sorted(set(model.state_dict()) - dense_keys)
    assert len(added) == 4 and all(".learned." in key for key in added)
    assert dense_keys <= set(model.state_dict())
    model.train()(images).square().sum().backward()
    learned = {name: p for name, p in model.named_parameters() if ".learned." in name}
    assert sorted(learned) == added
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.values())
    assert next(iter(learned.values())).dtype == torch.float64

    with torch.no_grad():
        for parameter in learned.values():
            parameter.add_(torch.randn_like(parameter))
        wanted = model.eval()(images)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        other = ts.apply(tiny(), method)
        assert not torch.equal(other(images), wanted)
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(other(images), wanted)


def test_a_dense_checkpoint_leaves_learned_parts_as_they_are(images: Tensor) -> None:
    model = ts.apply(tiny(), MadeUp(at=(1,), part=linear_scores, decide=by_learned_score))
    before = {k: v.clone() for k, v in model.state_dict().items() if ".learned." in k}
    model.load_state_dict(tiny().state_dict(), strict=True)
    assert before and all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_remove_takes_learned_parts_along(images: Tensor) -> None:
    model = ts.remove(ts.apply(tiny(), MadeUp(at=(1,), part=linear_scores, decide=by_learned_score)))
    assert set(model.state_dict()) == set(tiny().state_dict())
    assert torch.equal(features(model, images), features(tiny(), images))


def test_a_training_mask_stands_in_for_removal(images: Tensor) -> None:
    score = torch.randn(3, PATCHES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    score.requires_grad_(True)

    def decide(view: ts.View) -> Decision:
        keep, dropped = split_top(score, view.keep)
        if not view.training:
            return ts.Assignment(keep=keep, dropped=dropped)
        hard = torch.zeros_like(score).scatter(1, keep, 1.0)
        soft = score.sigmoid()
        return ts.KeepMask(mask=hard - soft.detach() + soft)

    model = ts.apply(tiny(), MadeUp(at=(1,), decide=decide))
    removed = features(model, images)
    model.train()
    masked = model.forward_features(images)
    keep = split_top(score, PATCHES // 2)[0]
    rows = keep.unsqueeze(2).expand(-1, -1, 16)
    # A masked key keeps the share MASK_EPSILON of its attention, in three blocks and for eight keys.
    assert 0 < (masked[:, 0] - removed[:, 0]).abs().max() < 1000 * MASK_EPSILON
    torch.testing.assert_close(
        masked[:, 1:].gather(1, rows), removed[:, 1:].gather(1, rows), rtol=0, atol=1000 * MASK_EPSILON
    )
    assert not torch.allclose(features(ts.remove(model.eval()), images)[:, 0], removed[:, 0], atol=1e-2)
    (masked[:, 0] * torch.arange(16)).sum().backward()
    assert (score.grad != 0).all()


def by_content(view: ts.View) -> Decision:
    mask = view.x[:, :, 0] > 0
    mask[:, 0] = True
    return ragged(mask if view.alive is None else mask & view.alive)


def test_counts_per_image_do_not_depend_on_the_batch(images: Tensor) -> None:
    method = MadeUpRagged(at=(1, 3), stays=PATCHES, decide=by_content, reads=frozenset({"received"}))

    def scoring(view: ts.View) -> Decision:
        alive = torch.ones_like(view.rep, dtype=torch.bool) if view.alive is None else view.alive
        assert view.received[alive].isfinite().all() and (view.received[~alive] == -torch.inf).all()
        return by_content(view)

    model = ts.apply(tiny(), MadeUpRagged(at=(1, 3), stays=PATCHES, decide=scoring, reads=frozenset({"received"})))
    alive = ts.trace(model, images).tokens.alive
    assert alive is not None and len(set(alive.sum(dim=1).tolist())) > 1, "the test needs images that differ"
    together = features(model, images)
    for number in range(3):
        torch.testing.assert_close(
            features(model, images[number : number + 1])[0], together[number], rtol=0, atol=1e-11
        )
    torch.testing.assert_close(features(model, images.flip(0)), together.flip(0), rtol=0, atol=1e-11)
    with pytest.raises(ts.TokensieveError, match="do not compose"):
        ts.apply(tiny(), [method, ts.ToMe(r=2)])


@pytest.mark.parametrize("signal", ["cls_row", "received", "keys", "values", "queries"])
def test_a_signal_that_was_not_declared_raises(images: Tensor, signal: str) -> None:
    def decide(view: ts.View) -> Decision:
        getattr(view, signal)
        return keep_only(odd(view), view.count)

    other = frozenset({"keys"}) if signal != "keys" else frozenset({"values"})
    model = ts.apply(tiny(), MadeUp(at=(1,), decide=decide, reads=other))
    with pytest.raises(ts.TokensieveError, match=f"'{signal}' without declaring it"):
        model(images)


def test_a_signal_before_the_attention_raises(images: Tensor) -> None:
    def decide(view: ts.View) -> Decision:
        return keep_only(split_top(view.cls_row, view.keep)[0], view.count)

    model = ts.apply(tiny(), MadeUp(at=(1,), where="before", decide=decide, reads=frozenset({"cls_row"})))
    with pytest.raises(ts.TokensieveError, match="before the attention of block 1 has run"):
        model(images)


def test_remaining_and_assign_must_agree(images: Tensor) -> None:
    model = ts.apply(tiny(), MadeUp(at=(1,), stays=5, decide=every_second("end")))
    with pytest.raises(ts.TokensieveError, match="left 8 tokens in block 1 where its schedule says 5"):
        model(images)
    matrix = torch.full((3, 2, PATCHES), 1 / PATCHES, dtype=torch.float64)
    model = ts.apply(tiny(), MadeUp(at=(1,), stays=5, decide=lambda view: ts.SoftAssignment(matrix=matrix)))
    with pytest.raises(ts.TokensieveError, match="left 2 tokens"):
        model(images)


def test_declared_and_given_return_must_agree(images: Tensor) -> None:
    model = ts.apply(tiny(), MadeUp(at=(1,), back="block", decide=every_second("end")))
    with pytest.raises(ts.TokensieveError, match="return at 'block' but its assignment says 'end'"):
        model(images)


def merge_neighbours(view: ts.View) -> Decision:
    batch = view.x.shape[0]
    return ts.Assignment.from_index((torch.arange(view.count) // 2).expand(batch, -1), view.count // 2)


@pytest.mark.parametrize("where", ["middle", "after"])
def test_signals_follow_tokens_that_merged_in_the_same_block(images: Tensor, where: str) -> None:
    seen: dict[str, Tensor] = {}

    def look(view: ts.View) -> Decision:
        for signal in ("cls_row", "received", "keys", "values"):
            seen[signal] = getattr(view, signal)
        return keep_only(split_top(view.cls_row, view.keep)[0], view.count)

    def first(view: ts.View) -> Decision:
        for signal in ("cls_row", "received", "keys", "values"):
            seen["all " + signal] = getattr(view, signal)
        return merge_neighbours(view)

    reads = frozenset({"cls_row", "received", "keys", "values"})
    model = ts.apply(
        tiny(), [MadeUp(at=(1,), decide=first, reads=reads), MadeUpToo(at=(1,), where=where, decide=look, reads=reads)]
    )
    features(model, images)
    for signal in ("cls_row", "received"):
        torch.testing.assert_close(seen[signal], seen["all " + signal].view(3, 8, 2).sum(dim=2))
    for signal in ("keys", "values"):
        torch.testing.assert_close(seen[signal], seen["all " + signal].view(3, 8, 2, 8).mean(dim=2))


def test_signals_follow_a_soft_assignment_in_the_same_block(images: Tensor) -> None:
    pool = torch.eye(4, dtype=torch.float64).repeat_interleave(4, dim=1) / 4
    seen: dict[str, Tensor] = {}

    def first(view: ts.View) -> Decision:
        seen["all"], seen["all keys"] = view.cls_row, view.keys
        return ts.SoftAssignment(matrix=pool.expand(3, -1, -1))

    def look(view: ts.View) -> Decision:
        seen["cls_row"], seen["keys"] = view.cls_row, view.keys
        return keep_only(split_top(view.cls_row, view.keep)[0], view.count)

    reads = frozenset({"cls_row", "keys"})
    model = ts.apply(
        tiny(),
        [
            MadeUp(at=(1,), stays=4, decide=first, reads=reads),
            MadeUpToo(at=(1,), where="after", decide=look, reads=reads),
        ],
    )
    features(model, images)
    torch.testing.assert_close(seen["cls_row"], seen["all"].view(3, 4, 4).sum(dim=2))
    torch.testing.assert_close(seen["keys"], seen["all keys"].view(3, 4, 4, 8).mean(dim=2))


def test_signals_are_complete_again_after_an_attention_that_some_skipped(images: Tensor) -> None:
    seen: list[Tensor] = []

    def look(view: ts.View) -> Decision:
        seen.append(view.cls_row)
        return keep_only(split_top(view.cls_row, view.keep)[0], view.count)

    model = ts.apply(
        tiny(),
        [
            MadeUp(at=(1,), where="before", back="attention", decide=every_second("attention")),
            MadeUpToo(at=(1,), where="after", decide=look, reads=frozenset({"cls_row"})),
        ],
    )
    features(model, images)
    # Nobody looked at the eight tokens that sat the attention out.
    assert seen[-1].shape == (3, 16)
    assert (seen[-1][:, ::2] == 0).all() and (seen[-1][:, 1::2] > 0).all()


def test_a_composition_acts_in_the_order_given(images: Tensor) -> None:
    merge = MadeUp(at=(1,), decide=merge_neighbours)
    prune = MadeUpToo(at=(1,), stays=3, decide=lambda view: keep_only(odd(view)[:, :3], view.count))
    events = ts.trace(ts.apply(tiny(), [merge, prune]), images).events
    assert [(e.before, e.after) for e in events] == [(16, 8), (8, 3)]
    assert events[-1].group.tolist() == [[-1, -1, 0, 0, -1, -1, 1, 1, -1, -1, 2, 2, -1, -1, -1, -1]] * 3


@torch.no_grad()
def test_log_size_attention_equals_doubled_tokens(images: Tensor) -> None:
    # Pairs of equal tokens, merged: with log(size) every later block must act as if both were there still.
    def decide(view: ts.View) -> Decision:
        return merge_neighbours(view)

    model = tiny()
    model.pos_embed[:, 1:] = model.pos_embed[:, 1:].view(1, 8, 2, 16)[:, :, :1].expand(-1, -1, 2, -1).reshape(1, 16, 16)
    # Patches run along rows of four, so neighbours are equal when every second column of patches repeats.
    pairs = images.view(3, 3, 64, 2, 2, 16)[..., :1, :].expand(-1, -1, -1, -1, 2, -1).reshape(3, 3, 64, 64)
    dense = features(model, pairs)
    plain = features(ts.apply(model, MadeUp(at=(0,), decide=decide)), pairs)
    ts.remove(model)
    sized = features(ts.apply(model, MadeUp(at=(0,), decide=decide, proportional=True)), pairs)
    torch.testing.assert_close(sized, dense, rtol=0, atol=1e-10)
    assert (plain - dense).abs().max() > 1e-3
