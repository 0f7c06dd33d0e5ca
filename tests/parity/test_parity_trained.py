"""The methods with learned parts, each against plain loops on a whole tiny ViT in float64, and their training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.harness import DEPTH, HEADS, PATCHES, compare, compare_each, tiny
from tests.helpers.references import trained as reference
from tests.helpers.references.plain import vit
from tokensieve.engine.block import Site
from tokensieve.measure.macs import count
from tokensieve.methods._added import added_to
from tokensieve.methods._relaxed import relaxed_matching
from tokensieve.methods._threshold import Threshold
from tokensieve.methods.avit import HALTING
from tokensieve.methods.cropr import Router
from tokensieve.ops.matching import bipartite_matching
from tokensieve.train.auxiliary import recording

LABELS = torch.tensor([1, 2, 3])


def learned(model: nn.Module) -> list[Any]:
    """The learned parts of all sites, in order."""
    return [part for site in model.modules() if isinstance(site, Site) for part in site.learned.values()]


def different_numbers(model: nn.Module, images: Tensor) -> bool:
    """Whether the images of a batch keep different numbers of tokens."""
    state = ts.trace(model, images).tokens
    assert state is not None and state.alive is not None
    return len(set(state.alive.sum(dim=1).tolist())) > 1


@pytest.mark.parametrize(("r", "queries", "fusion"), [(5, 1, True), (5, 3, False), (20, 2, True)])
def test_cropr(images: Tensor, r: int, queries: int, fusion: bool) -> None:
    model = ts.apply(tiny(), ts.Cropr(r=r, queries=queries, fusion=fusion, classes=10))
    own = [part.queries.detach() for part in learned(model)]
    assert len(own) == DEPTH - 2
    compare(model, images, before=reference.cropr(DEPTH, range(DEPTH - 2), r, own, fusion))


def test_croprs_heads_learn_and_leave_the_model_alone(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.Cropr(r=5, classes=10)).train()
    with recording(model) as record:
        model(images)
    answers = [answer.logits for answer in added_to(record.tokens).answers]
    wanted = sum(nn.functional.cross_entropy(logits.float(), LABELS) for logits in answers)
    assert len(answers) == DEPTH - 2
    torch.testing.assert_close(record.losses(LABELS)["cropr"], wanted)
    record.loss(LABELS).backward()
    for name, parameter in model.named_parameters():
        if ".learned." in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0
        else:
            assert parameter.grad is None
    with pytest.raises(ts.TokensieveError, match=r"cropr tell 10 classes apart .* set its option classes"):
        record.loss(torch.tensor([1, 2, 10]))


def test_croprs_query_learns_where_the_answer_is(images: Tensor) -> None:
    """Only one kind of token says which class it is; its score ends above that of all others."""
    torch.manual_seed(0)
    router = Router(16, 1, 3)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    kinds = torch.randn(3, 16)
    for _ in range(150):
        labels = torch.randint(0, 3, (16,))
        x = 0.3 * torch.randn(16, 12, 16)
        x[:, 4] = kinds[labels]
        x[:, 4, 0] = x[:, 4, 0] + 4
        optimizer.zero_grad()
        nn.functional.cross_entropy(router.answer(x), labels).backward()
        optimizer.step()
    assert (router(x).argmax(dim=1) == 4).float().mean() > 0.9


@pytest.mark.parametrize("start", [(0.0009, 0.0012, 0.001), (0.0,), (1.0,)])
def test_as_vit(images: Tensor, start: tuple[float, ...]) -> None:
    sites, shift = (1, 3, 5), 1e-5
    model = ts.apply(tiny(), ts.ASViT(start=start, sites=sites))
    for part in learned(model):
        assert isinstance(part, Threshold)
        part.value.data.fill_(shift)
    thresholds = [start[min(place, len(start) - 1)] + shift for place in range(3)]
    compare_each(model, images, before=reference.as_vit(sites, thresholds))


def as_vit(**options: Any) -> nn.Module:
    return ts.apply(tiny(), ts.ASViT(start=0.001, sites=(1, 3, 5), **options))


def test_as_vit_keeps_another_number_in_every_image(images: Tensor) -> None:
    assert different_numbers(as_vit(), images)


def test_as_vit_trains_on_the_answer_that_removal_gives(images: Tensor) -> None:
    model = as_vit(target=0.3, temperature=1e-3)
    with torch.no_grad():
        removed = model(images)
    left = [stage.alive for stage in ts.trace(model, images).stages]
    model.train()
    with recording(model) as record:
        masked = model(images)
    torch.testing.assert_close(masked, removed, rtol=1e-6, atol=1e-6)
    width, tokens = 32, []
    for alive in left:
        tokens.append((torch.full((3,), PATCHES) if alive is None else alive.sum(1)) + 1.0)
    cost = [12 * n * width**2 + 2 * n * n * width for n in tokens]
    macs, dense = record.macs()
    torch.testing.assert_close(macs.float(), sum(cost), rtol=1e-6, atol=0)
    loss = record.losses()["macs"]
    torch.testing.assert_close(loss.float(), 2 * (macs.mean() / dense - 0.3).abs().float(), rtol=1e-6, atol=0)
    (nn.functional.cross_entropy(masked, LABELS) + loss).backward()
    for part in learned(model):
        assert part.value.grad is not None and part.value.grad.isfinite() and part.value.grad.abs() > 0


def test_as_vits_threshold_rises_while_too_much_is_kept(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.ASViT(start=0.0, sites=(2,), target=0.05, temperature=1e-3)).train()
    optimizer = torch.optim.Adam([part.value for part in learned(model)], lr=1e-4)
    costs = []
    for _ in range(20):
        with recording(model) as record:
            model(images)
        optimizer.zero_grad()
        record.loss().backward()
        optimizer.step()
        macs, dense = record.macs()
        costs.append(float(macs.detach().mean() / dense))
    assert costs[-1] < costs[0] - 0.05, costs


A_VIT = {"scale": 2.0, "shift": 3.0}


@pytest.mark.parametrize("options", [A_VIT, {"scale": 1.0, "shift": 0.0, "full": 0.6}, {"scale": 1.0, "shift": -9.0}])
def test_a_vit(images: Tensor, options: dict[str, float]) -> None:
    model = ts.apply(tiny(), ts.AViT(**options))
    before = reference.a_vit(DEPTH, **{"full": 0.99} | options)
    compare_each(model, images, before=before, last=before)


def test_a_vit_keeps_another_number_in_every_image(images: Tensor) -> None:
    assert different_numbers(ts.apply(tiny(), ts.AViT(**A_VIT)), images)


def test_a_vit_trains_on_the_answer_that_removal_gives(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.AViT(**A_VIT, ponder=1.0, prior=1.0))
    with torch.no_grad():
        removed, tokens = model(images), model.forward_features(images)
    stages = ts.trace(model, images).stages
    model.train()
    torch.testing.assert_close(model.forward_features(images), tokens, rtol=1e-6, atol=1e-6)
    with recording(model) as record:
        masked = model(images)
    torch.testing.assert_close(masked, removed, rtol=1e-6, atol=1e-6)
    state = record.tokens
    halting = state.extra(HALTING)
    assert halting is not None
    torch.testing.assert_close(halting[..., -1], torch.ones_like(halting[..., -1]))
    # Weights of a mean sum to one, so the blocks run and the remainder can be counted from what is left of each.
    losses = {name: loss.detach() for name, loss in record.losses().items()}
    run = sum(PATCHES if stage.alive is None else stage.alive.sum(dim=1).double().mean() for stage in stages)
    assert float(run) / PATCHES < float(losses["ponder"]) < float(run) / PATCHES + 1.2
    assert float(losses["prior"]) > 0
    (nn.functional.cross_entropy(masked, LABELS) + record.loss()).backward()
    gradient = model.patch_embed.proj.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_vits_prior_is_a_divergence(images: Tensor) -> None:
    """Of even scores from a Gaussian around block 8 of 12, of which .98 lie before that; see engine_act.py and
    get_distribution_target of NVlabs/A-ViT (120c9cb)."""
    method = ts.AViT(scale=0.0, shift=float(-torch.tensor(1 / DEPTH).logit()), prior=1.0)
    model = ts.apply(tiny(), method).train()
    with recording(model) as record:
        model(images)
    gauss = [math.exp(-((2 * block - 8) ** 2) / 2) for block in range(DEPTH)]
    target = [0.98 * value / sum(gauss[:4]) for value in gauss]
    wanted = sum(t * (math.log(t) - math.log(1 / DEPTH)) for t in target) / DEPTH
    torch.testing.assert_close(float(record.losses()["prior"].detach()), wanted)
    torch.testing.assert_close(
        record.losses()["ponder"].float(), torch.tensor(5e-4 * (DEPTH + 1 / DEPTH)), atol=1e-7, rtol=0
    )


def compare_outputs(model: nn.Module, images: Tensor, **reduction: Any) -> None:
    """Logits, all tokens and token counts, where no token stands in one place."""
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    stages = [(s.attended, s.processed) for s in ts.trace(model, images).stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        wanted, whole, run = vit(state, image, HEADS, DEPTH, **reduction)
        assert run.counts == stages
        torch.testing.assert_close(tokens[number], whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted, rtol=0, atol=1e-9)


def enliven(model: nn.Module) -> nn.Module:
    """Learned parts with weights that matter: fresh ones may add nothing."""
    torch.manual_seed(7)
    with torch.no_grad():
        for part in learned(model):
            for parameter in part.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("maps", ["mlp", "conv"])
@pytest.mark.parametrize("fuser", [True, False])
@pytest.mark.parametrize("every", [False, True])
def test_token_learner(images: Tensor, maps: str, fuser: bool, every: bool) -> None:
    model = enliven(ts.apply(tiny(), ts.TokenLearner(tokens=5, maps=maps, fuser=fuser, every=every)))
    sites = tuple(range(DEPTH // 2, DEPTH if every else DEPTH // 2 + 1))
    before, last = reference.token_learner(model.state_dict(), sites, 7, maps, fuser)
    compare_outputs(model, images, before=before, last=last)


def test_a_fresh_fuser_gives_every_patch_back_as_it_was(images: Tensor) -> None:
    dense, model = tiny(), ts.apply(tiny(), ts.TokenLearner(sites=(2,)))
    with torch.no_grad():
        x = dense.forward_intermediates(images, indices=[1], output_fmt="NLC", intermediates_only=True)[0]
        tokens = model.forward_features(images)[:, 1:]
    torch.testing.assert_close(tokens, model.norm(x).detach())


@pytest.mark.parametrize("maps", ["mlp", "conv"])
def test_token_learner_learns_and_leaves_out_what_is_masked(images: Tensor, maps: str) -> None:
    model = enliven(ts.apply(tiny(), [ts.DynamicViT(sites=(1,)), ts.TokenLearner(sites=(3,), maps=maps)])).train()
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(images), LABELS).backward()
    for part in learned(model):
        for name, parameter in part.named_parameters():
            # What the class token never sees, its loss does not move.
            moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert moved == (not name.startswith("fuser"))
    model.zero_grad()
    model.forward_features(images).square().mean().backward()
    for part in learned(model):
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in part.parameters())


def test_maps_of_a_grid_need_the_grid(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.TokenLearner(maps="conv", sites=(1, 3), tokens=3))
    with torch.no_grad():
        assert model(images).isfinite().all()  # the second site has nothing to do
    ts.apply(ts.remove(model), [ts.TokenLearner(sites=(1,)), ts.TokenLearner(maps="conv", tokens=3, sites=(3,))])
    with pytest.raises(ts.TokensieveError, match="grid of 7 × 7 patches and got 8 tokens"):
        model(images)


@pytest.mark.parametrize("r", [5, 24])
@pytest.mark.parametrize("proportional", [True, False])
def test_dtem(images: Tensor, r: int, proportional: bool) -> None:
    model = enliven(ts.apply(tiny(), ts.DTEM(r=r, proportional=proportional)))
    assert len(learned(model)) == DEPTH
    compare(model, images, middle=reference.dtem(model.state_dict(), r), log_size=proportional)


def test_dtems_relaxation_becomes_the_merge(images: Tensor) -> None:
    answers = {}
    for temperature in (1e-9, 1e-2, 0.1):
        model = enliven(ts.apply(tiny(), ts.DTEM(r=5, temperature=temperature, sites=(2,))))
        with torch.no_grad():
            merged = model.eval().forward_features(images)
            answers[temperature] = float((model.train().forward_features(images) - merged).abs().mean())
    assert answers[1e-9] < 1e-6 < answers[1e-2] < answers[0.1]


def test_a_relaxed_matching_moves_every_token_wholly() -> None:
    torch.manual_seed(0)
    metric = torch.randn(2, 11, 4, dtype=torch.float64, requires_grad=True)
    for first in (0, 1):
        keep, moved, onto = bipartite_matching(metric, 3, first)
        moves = relaxed_matching(metric, 3, first, 0.1)
        assert moves.shape == (2, 11, 11)
        torch.testing.assert_close(moves.sum(dim=2), torch.ones(2, 11, dtype=torch.float64))
        assert torch.equal(moves[:, 1 - first :: 2], torch.eye(11).double()[1 - first :: 2].expand(2, -1, -1))
        # Where it is sharp, the best edges are taken one after the other.
        sharp = relaxed_matching(metric, 3, first, 1e-9)
        wanted = torch.eye(11).double().repeat(2, 1, 1)
        wanted.scatter_(
            1, moved.unsqueeze(2).expand(-1, -1, 11), nn.functional.one_hot(keep.gather(1, onto), 11).double()
        )
        torch.testing.assert_close(sharp, wanted, rtol=0, atol=2e-7)
        metric.grad = None
        (moves * torch.randn(11, dtype=torch.float64)).sum().backward()
        assert metric.grad is not None and (metric.grad.abs().sum(dim=2) > 0)[:, first::2].all()


def test_a_relaxed_matching_takes_as_its_formula_says() -> None:
    """Three edges a token, in turns of a softmax over all edges of an image; against plain loops."""
    metric = torch.randn(1, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    unit = metric[0] / metric[0].norm(dim=1, keepdim=True)
    side_a, side_b = range(1, 9, 2), range(0, 9, 2)
    edges: dict[tuple[int, int], float] = {}
    for a in side_a:
        for b in sorted(side_b, key=lambda b, a=a: -float(unit[a] @ unit[b]))[:3]:
            edges[a, b] = float(unit[a] @ unit[b]) / 0.1
    taken = dict.fromkeys(edges, 0.0)
    for _ in range(2):
        raw = {edge: math.exp(value / 0.1) for edge, value in edges.items()}
        part = {edge: value / sum(raw.values()) for edge, value in raw.items()}
        for a, b in edges:
            taken[a, b] += part[a, b]
            whole = sum(value for (own, _), value in part.items() if own == a)
            edges[a, b] += math.log(max(1 - whole, 1e-7))
    moves = torch.eye(9, dtype=torch.float64)
    for a in side_a:
        whole = sum(value for (own, _), value in taken.items() if own == a)
        for b in side_b:
            moves[a, b] = taken.get((a, b), 0.0) / max(whole / (1 - 1e-7), 1)
        moves[a, a] = 1 - min(whole, 1 - 1e-7)
    torch.testing.assert_close(relaxed_matching(metric, 2, 1, 0.1)[0], moves, rtol=0, atol=1e-9)


def test_dtems_embeddings_learn_alone(images: Tensor) -> None:
    """With the model frozen, a few steps bring the relaxed model nearer to the dense one."""
    dense, model = tiny(), ts.apply(tiny(), ts.DTEM(r=6)).train()
    with torch.no_grad():
        wanted = dense(images).softmax(dim=1)
    own = [p for part in learned(model) for p in part.parameters()]
    optimizer, losses = torch.optim.Adam(own, lr=3e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), wanted)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in own[:-2])
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < losses[0] - 0.01


def test_dtem_trains_alone_or_with_what_is_merged(images: Tensor) -> None:
    both = [ts.DynamicViT(sites=(1,)), ts.DTEM(r=2)]
    with pytest.raises(ts.TokensieveError, match="relaxed=false"):
        ts.apply(tiny(), both).train()(images)
    both = [ts.DynamicViT(sites=(1,)), ts.DTEM(r=2, relaxed=False)]
    assert ts.apply(tiny(), both).train()(images).isfinite().all()


@pytest.mark.parametrize("keep", [0.5, 0.7])
@pytest.mark.parametrize(("share", "shared"), [(None, (3, 5)), ((3, 4, 5), (3, 4, 5)), ((), ())])
def test_psvit(images: Tensor, keep: float, share: tuple[int, ...] | None, shared: tuple[int, ...]) -> None:
    model = ts.apply(tiny(), ts.PSViT(keep=keep, share=share, sites=(2, 4)))
    # Block 4 pools its tokens, so the map of block 3 does not fit them.
    borrowed = tuple(block for block in shared if block != 4)
    compare(model, images, before=reference.psvit((2, 4), keep), shared=borrowed)
    stages, width = ts.trace(model, images).stages, 32
    assert [stage.saved for stage in stages] == [2 * width**2 * (block in borrowed) for block in range(DEPTH)]
    macs, dense = count(model, images), count(tiny(), images)
    for block, (ours, theirs) in enumerate(zip(macs.blocks, dense.blocks, strict=True)):
        tokens = ours.attended
        wanted = 12 * tokens * width**2 + 2 * tokens**2 * width - (block in borrowed) * 2 * tokens * width**2
        assert ours.macs == wanted and theirs.macs >= wanted


def test_a_shared_map_moves_with_nobody(images: Tensor) -> None:
    """Where another method removes tokens in a block, the block behind it computes its own map."""
    both = ts.apply(tiny(), [ts.PSViT(sites=(2,)), ts.ToMe(r=2, sites=(2,))])
    assert [stage.saved > 0 for stage in ts.trace(both, images).stages] == [False] * 5 + [True]
    with torch.no_grad():
        shared = both(images)
        alone = ts.apply(tiny(), [ts.PSViT(sites=(2,), share=(5,)), ts.ToMe(r=2, sites=(2,))])(images)
    assert torch.equal(shared, alone)


def test_psvit_trains_what_it_uses(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.PSViT(sites=(2,))).train()
    nn.functional.cross_entropy(model(images), LABELS).backward()
    for block, used in ((2, True), (3, False)):
        gradient = model.blocks[block].attn.qkv.weight.grad
        assert gradient is not None and gradient.isfinite().all()
        assert bool(gradient[:64].abs().sum() > 0) == used and gradient[64:].abs().sum() > 0


def test_psvit_shares_behind_its_first_site() -> None:
    with pytest.raises(ts.TokensieveError, match="psvit: share must be blocks behind the first site, 2"):
        ts.apply(tiny(), ts.PSViT(sites=(2,), share=(1,)))
