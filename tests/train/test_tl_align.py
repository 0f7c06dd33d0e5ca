"""TL-Align: one scalar a token against a full label tensor, through every kind of reduction; and mixed images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import tokensieve as ts
from tokensieve.tokens import algebra
from tokensieve.tokens.decision import Decision, return_point
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.train.tl_align import mix, patch_shares, tl_align

SIZE, GRID, CLASSES = (64, 80), (4, 5), 6
MODELS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "vit-pooled": ("vit_base_patch16_siglip_gap_224", {}),
    "eva": ("eva02_tiny_patch14_224", {"global_pool": "token"}),
    "eva-pooled-beside-a-class-token": ("eva02_tiny_patch14_224", {}),
    "eva-pooled": ("eva02_tiny_patch14_224", {"global_pool": "avg", "class_token": False}),
}
METHODS = (
    None,
    "bat",
    "bat-paper:sites=[1,2]",
    "tome:r=4",
    "evit:keep=0.5",
    "topk:keep=0.5",
    "tosa:keep=0.5:score=own",
    "tosa:keep=0.5:score=own:bypass=attention",
    "tome:r=2+tosa:keep=0.5:score=own",
)


def small(name: str) -> nn.Module:
    base, changes = MODELS[name]
    sizes = {"img_size": SIZE, "patch_size": 16, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": CLASSES}
    torch.manual_seed(3)
    model = timm.create_model(base, **{**sizes, **changes}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # sharper attention than that of a fresh model
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    return model


@dataclass
class Item:
    """A token of the reference: its label, how many patches it stands for, whose position it has."""

    label: Tensor
    size: float
    rep: int


class Maps(TorchFunctionMode):
    """Every attention map of a run, mean over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            bias = kwargs.get("attn_mask")
            self.maps.append((logits if bias is None else logits + bias).softmax(-1).mean(1))
        return func(*args, **kwargs)


@contextmanager
def decisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str, Decision]]]:
    """What every site decides, in order."""
    taken: list[tuple[int, str, Decision]] = []
    plain = algebra.apply

    def recording(tokens: Any, decision: Any, block: int, point: str, *rest: Any) -> Any:
        taken.append((block, point, decision))
        return plain(tokens, decision, block, point, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(algebra, "apply", recording)
        yield taken


def reference(
    labels: Tensor, prefix: int, maps: list[Tensor], taken: list[tuple[int, str, Decision]], image: int, pools: bool
) -> Tensor:
    """The label that the head reads for one image, all classes of all tokens carried along, token by token.

    Args:
        labels: (N, classes) of the patches.
        prefix: tokens in front.
        maps: attention maps (B, L, L) of every block.
        taken: the decisions.
        image: which of the batch.
        pools: whether the head averages over patches.
    """
    front = [labels.mean(0) for _ in range(prefix)]
    items = [Item(label, 1.0, place) for place, label in enumerate(labels)]
    parked: list[tuple[tuple[int, bool], Item]] = []

    def back(due: tuple[int, bool]) -> None:
        nonlocal items, parked
        came = [item for at, item in parked if at <= due]
        parked = [(at, item) for at, item in parked if at > due]
        if came:
            items = sorted(items + came, key=lambda item: item.rep)

    def act(block: int, point: str) -> None:
        nonlocal items
        for at, where, decision in taken:
            if (at, where) != (block, point):
                continue
            if isinstance(decision, SoftAssignment):
                rows = decision.matrix[image]
                mixed = (rows / rows.sum(1, keepdim=True)) @ torch.stack([item.label for item in items])
                items = [Item(label, 1.0, place) for place, label in enumerate(mixed)]
                continue
            groups = [[int(leader)] for leader in decision.keep[image]]
            if decision.moved is not None and decision.onto is not None:
                for member, onto in zip(decision.moved[image].tolist(), decision.onto[image].tolist(), strict=True):
                    groups[onto].append(member)
            new = []
            for members in groups:
                weights = [
                    items[m].size if decision.weight is None else float(decision.weight[image, m]) for m in members
                ]
                label = sum(w * items[m].label for w, m in zip(weights, members, strict=True)) / sum(weights)
                new.append(Item(label, sum(items[m].size for m in members), items[members[0]].rep))
            if decision.dropped is not None and decision.until != "end":
                due = return_point(decision.until, block, point)
                parked.extend((due, items[m]) for m in decision.dropped[image].tolist())
            items = new

    for block, attention in enumerate(maps):
        back((block, False))
        act(block, "before")
        whole = torch.stack(front + [item.label for item in items])
        whole = (attention[image] @ whole + whole) / 2
        front = list(whole[:prefix])
        for item, label in zip(items, whole[prefix:], strict=True):
            item.label = label
        act(block, "middle")
        back((block, True))
        act(block, "after")
    back((len(maps), True))
    if not pools:
        return front[0]
    return sum(item.size * item.label for item in items) / sum(item.size for item in items)  # type: ignore[return-value]


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_one_scalar_a_token_equals_the_full_label_tensor(
    name: str, spec: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(name)
    if spec is not None:
        ts.apply(model, spec)
    x, shares = torch.randn(3, 3, *SIZE, dtype=torch.float64), torch.rand(3, 20, dtype=torch.float64)
    first, second = (F.one_hot(torch.randint(0, CLASSES, (3,)), CLASSES).double() for _ in range(2))
    maps = Maps()
    with torch.no_grad():
        plain = model(x)
        with decisions(monkeypatch) as taken, maps:
            assert torch.equal(model(x), plain)
        with tl_align(model, shares) as tracker:
            assert torch.equal(model(x), plain), "being watched changes no answer"
    assert (spec is None) == (not taken)
    found = tracker.target(first, second)
    labels = shares.unsqueeze(2) * first.unsqueeze(1) + (1 - shares.unsqueeze(2)) * second.unsqueeze(1)
    prefix = model.num_prefix_tokens
    for image in range(3):
        wanted = reference(labels[image], prefix, maps.maps, taken, image, pools="pooled" in name)
        torch.testing.assert_close(found[image], wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    mean = shares.mean(1)
    assert (tracker.share() - mean).abs().max() > 1e-4, "the share of the image is not that of its class token"


@dataclass(frozen=True, kw_only=True)
class Soft(ts.Method):
    """Every new token is a weighted sum of all, with weights that do not sum to one."""

    name = "soft-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1, 2)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2

    def assign(self, view: ts.View) -> SoftAssignment:
        return SoftAssignment(matrix=view.x[..., : view.keep].transpose(1, 2).exp())


@pytest.mark.parametrize("name", ["vit", "eva"])
def test_soft_assignments_average_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ts.apply(small(name), Soft()), torch.randn(2, 3, *SIZE, dtype=torch.float64)
    shares, maps = torch.rand(2, 20, dtype=torch.float64), Maps()
    with torch.no_grad(), decisions(monkeypatch) as taken, maps:
        model(x)
    with torch.no_grad(), tl_align(model, shares) as tracker:
        model(x)
    labels = torch.stack([shares, 1 - shares], dim=2)
    for image in range(2):
        wanted = reference(labels[image], model.num_prefix_tokens, maps.maps, taken, image, pools=False)
        torch.testing.assert_close(tracker.share()[image], wanted[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "vit-pooled", "eva"])
@pytest.mark.parametrize("spec", ["topk:keep=0.5", "topk:keep=0.7+tosa:keep=0.5:score=own"])
def test_masks_that_stand_in_for_removal_give_the_same_target(name: str, spec: str) -> None:
    model, x = ts.apply(small(name), spec, masked=True), torch.randn(2, 3, *SIZE, dtype=torch.float64)
    shares = torch.rand(2, 20, dtype=torch.float64)
    found = []
    for training in (False, True):
        model.train(training)
        with torch.no_grad(), tl_align(model, shares) as tracker:
            model(x)
        found.append(tracker.share())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", [None, "bat", "tome:r=4", "evit", "tosa:score=own"])
def test_a_share_of_all_stays_a_share_of_all(spec: str | None) -> None:
    model = small("vit").float()
    if spec is not None:
        ts.apply(model, spec)
    for share in (0.0, 1.0):
        with torch.no_grad(), tl_align(model, torch.full((2, 20), share)) as tracker:
            model(torch.randn(2, 3, *SIZE))
        torch.testing.assert_close(tracker.share(), torch.full((2,), share))


def test_a_training_step_with_half_precision_and_a_wrapper() -> None:
    model = ts.apply(small("vit").float(), "bat").train()
    x, shares = torch.randn(2, 3, *SIZE), torch.rand(2, 20)
    wrapped = nn.Sequential(model)
    with tl_align(model, shares) as tracker, torch.autocast("cpu", dtype=torch.bfloat16):
        logits = wrapped(x)
    first, second = torch.eye(CLASSES)[:2], torch.eye(CLASSES)[2:4]
    target = tracker.target(first, second)
    assert target.dtype == torch.float32 and not target.requires_grad
    torch.nn.functional.cross_entropy(logits.float(), target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.blocks[0].parameters())
    # Half precision makes the maps coarse, the shares are still added up in float32.
    with torch.no_grad(), tl_align(model, torch.ones(2, 20)) as tracker, torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    torch.testing.assert_close(tracker.share(), torch.ones(2), rtol=1e-5, atol=1e-5)


def test_nothing_stays_behind_and_wrong_shares_are_refused() -> None:
    model = ts.apply(small("vit").float(), "tome:r=4")
    x = torch.randn(2, 3, *SIZE)
    with pytest.raises(ts.TokensieveError, match="give those of this batch"), tl_align(model, torch.rand(2, 19)):
        model(x)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    with tl_align(model, torch.rand(2, 20)) as tracker:
        pass
    with pytest.raises(ts.TokensieveError, match="no label has been followed"):
        tracker.share()
    assert ts.trace(model, x).tokens.riders == {}  # type: ignore[union-attr]


def test_a_patch_has_the_share_of_its_pixels() -> None:
    model = small("vit")
    own = torch.ones(1, *SIZE)
    own[0, 8:32, 16:40] = 0
    found = patch_shares(own, model).view(GRID)
    assert found[0].tolist() == [1, 0.5, 0.75, 1, 1] and found[1].tolist() == [1, 0, 0.5, 1, 1]
    assert (found[2:] == 1).all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_images_are_those_of_timm_and_their_shares_give_its_labels(
    mode: str, mixup: float, cutmix: float
) -> None:
    import numpy as np

    model = small("vit")
    options: dict[str, Any] = {"mode": mode, "num_classes": CLASSES, "label_smoothing": 0.1}
    mixer = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, **options)
    images, labels = torch.randn(6, 3, *SIZE), torch.randint(0, CLASSES, (6,))
    for seed in range(4):
        np.random.seed(seed)
        wanted, target = mixer(images.clone(), labels)
        np.random.seed(seed)
        mixed = mix(mixer, images, labels, model)
        torch.testing.assert_close(mixed.images, wanted)
        share = mixed.shares.mean(1, keepdim=True)
        torch.testing.assert_close(share * mixed.first + (1 - share) * mixed.second, target.float())
    with pytest.raises(ts.TokensieveError, match="must be even"):
        mix(mixer, images[:5], labels[:5], model)
