"""How the question model was trained: the CLIP pair first, then the LLaVA behind its frozen vision tower.

**The pair.** For a text and a canvas the sigmoid loss (Zhai et al., 2023, arXiv 2303.15343) of scale · cos + bias, once
with the class token (is such an object there?) and once with every projected patch (does the patch show what the text
is about?). Texts are single words, pairs such as "red 7", and the questions; a question is about the objects that it
names and the one that answers it. The patches of the last layer but one, which the LLaVA takes, go
through its projector and are compared with the embeddings of the words for their kind and colour, as LLaVA is aligned
first (Liu et al., 2023, arXiv 2304.08485); a linear head, dropped afterwards, reads their cell.

**The LLaVA.** Cross entropy of the answers, several questions behind the same image at once, each of which sees the
image and itself only. Up to the last part of the steps patches without ink are left out at random, which is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor, nn

from tokensieve.demo.digits import normalise
from tokensieve.demo.questions.asking import Asked, asked, one_of_each
from tokensieve.demo.questions.canvases import CELLS, COLOURS, KINDS, Canvas, canvas
from tokensieve.demo.questions.model import FEATURES
from tokensieve.demo.questions.optimizer import Orthogonal
from tokensieve.demo.questions.words import ANSWER, BEGIN, END, NUMBERS, PAD

INK = 0.25  # the share of a patch from which on it shows an object for certain
WIDER = 4.0  # times the matrices of the decoder at first, which begin near zero
SLOT = 11  # tokens of the longest question with its answer
PHRASES = 40  # pairs of a colour and a kind that a batch is compared with
IGNORED = -100


@dataclass
class Lesson:
    """A model in training.

    Attributes:
        parts: the modules that learn, by name; what is saved and resumed.
        loss: of a batch of canvases, drawn with a generator; ``done`` is the share of the steps behind it.
        rate: the highest learning rate.
    """

    parts: nn.ModuleDict
    loss: Callable[[Sequence[Canvas], Generator, float], dict[str, Tensor]]
    rate: float
    heads: nn.Module


class Heads(nn.Module):
    """What the models are trained with and do not keep.

    Args:
        width: of the language model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(2))
        self.cell = nn.Linear(width, CELLS**2)
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-5.0))
        self.whole_bias = nn.Parameter(torch.tensor(-3.0))


def pair_lesson(pair: Any, model: Any) -> Lesson:
    """The first part."""
    core = model.model
    embed = core.language_model.embed_tokens
    nn.init.normal_(embed.weight, std=0.1)
    heads = Heads(embed.embedding_dim)
    learned = {"pair": pair, "heads": heads, "projector": core.multi_modal_projector, "embed": embed}

    def loss(seen: Sequence[Canvas], rng: Generator, done: float) -> dict[str, Tensor]:
        output = pair.vision_model(pixels_of(seen), output_hidden_states=True)
        before = output.hidden_states[-2][:, 1:]
        projected = F.normalize(
            pair.visual_projection(pair.vision_model.post_layernorm(output.last_hidden_state)), dim=2
        )
        questions = [one_of_each(one, rng) for one in seen]
        flat = [question for row in questions for question in row]
        phrases = [*KINDS, *COLOURS, *(f"{rng.choice(list(COLOURS))} {rng.choice(KINDS)}" for _ in range(PHRASES))]
        texts = encoded(pair, [*(question.question for question in flat), *phrases])
        asked_texts, named = texts[: len(flat)], texts[len(flat) :]
        scale, own = heads.scale.exp(), torch.tensor([i for i, row in enumerate(questions) for _ in row])
        by_question = scale * torch.einsum("qnd,qd->qn", projected[own, 1:], asked_texts) + heads.bias
        by_phrase = scale * torch.einsum("bnd,td->btn", projected[:, 1:], named) + heads.bias
        whole = pair.logit_scale.exp() * projected[:, 0] @ named.T + heads.whole_bias
        relevant = torch.stack([relevance(seen[i], question) for i, question in zip(own.tolist(), flat, strict=True)])
        shown = torch.stack([torch.stack([named_ink(one, phrase) for phrase in phrases]) for one in seen])
        return {
            "question": 10 * F.binary_cross_entropy_with_logits(by_question, relevant),
            "phrase": 10 * F.binary_cross_entropy_with_logits(by_phrase, shown),
            "whole": F.binary_cross_entropy_with_logits(whole, (shown.amax(dim=2) > 0).float()),
            **aligned(core.multi_modal_projector(before), labels_of(seen), embed.weight, heads),
        }

    return Lesson(nn.ModuleDict(learned), loss, rate=1.5e-3, heads=heads)


def model_lesson(model: Any, heads: Heads, slots: int = 8, patches: int = 56, whole_from: float = 0.9) -> Lesson:
    """The second part.

    Args:
        model: the LLaVA, with the tower of the pair.
        heads: of the first part.
        slots: questions behind each image.
        patches: those with ink first, until the share ``whole_from`` of the steps is done; then all.
    """
    core = model.model
    core.vision_tower.requires_grad_(False)
    decoder, projector = core.language_model, core.multi_modal_projector
    parts = nn.ModuleDict({"projector": projector, "decoder": decoder, "head": model.lm_head, "heads": heads})
    with torch.no_grad():
        model.lm_head.weight.copy_(decoder.embed_tokens.weight)
        for value in decoder.layers.parameters():
            if value.dim() == 2:
                value.mul_(WIDER)
    known: dict[Canvas, Tensor] = {}  # the tower is frozen

    @torch.no_grad()
    def features(seen: Sequence[Canvas]) -> Tensor:
        new = [one for one in dict.fromkeys(seen) if one not in known]
        if new:
            tower = core.vision_tower(pixels_of(new), output_hidden_states=True).hidden_states[-2][:, 1:]
            known.update(zip(new, tower.half(), strict=True))
        return torch.stack([known[one] for one in seen]).float()

    def loss(seen: Sequence[Canvas], rng: Generator, done: float) -> dict[str, Tensor]:
        tower = features(seen)
        count = FEATURES if done >= whole_from else patches
        kept = torch.from_numpy(np.stack([kept_patches(one, rng, count) for one in seen]))
        image = projector(tower.gather(1, kept.unsqueeze(2).expand(-1, -1, tower.shape[2])))
        ids, labels = zip(*(questions_of(one, rng, slots) for one in seen), strict=True)
        embed = decoder.embed_tokens
        begin = embed(torch.full((len(seen), 1), NUMBERS[BEGIN]))
        states = decoder(
            inputs_embeds=torch.cat([begin, image, embed(torch.stack(ids))], dim=1),
            attention_mask=mask_of(count, slots).expand(len(seen), 1, -1, -1),
            position_ids=torch.cat(
                [torch.zeros(len(seen), 1, dtype=torch.long), 1 + kept, places(len(seen), slots)], dim=1
            ),
            use_cache=False,
        ).last_hidden_state[:, 1 + count :]
        wanted = torch.stack(labels)
        there = wanted != IGNORED
        shown = [labels.gather(1, kept) for labels in labels_of(seen)]
        words = aligned(image, shown, decoder.embed_tokens.weight, heads)
        answer = F.cross_entropy(model.lm_head(states[there]), wanted[there])
        return {"answer": answer, "words": 0.3 * torch.stack(list(words.values())).sum()}

    return Lesson(parts, loss, rate=2e-3, heads=heads)


def train(
    lesson: Lesson, canvases: int, steps: int, batch: int, state: dict[str, Any], seed: int = 0
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train; yields after each step how many are done, and its losses. ``state`` is what a later call goes on with."""
    optimizer = Orthogonal(lesson.parts, lesson.rate)
    if state:
        lesson.parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
    known: dict[int, Canvas] = {}
    for step in range(state.get("step", 0), steps):
        rng = default_rng((seed, step))
        seen = []
        for place in rng.integers(canvases, size=batch):
            if place not in known:
                known[place] = canvas("train", seed, int(place))
            seen.append(known[place])
        losses = lesson.loss(seen, rng, step / steps)
        warm, cool = min(1.0, (step + 1) / 60), 0.5 * (1 + math.cos(math.pi * step / steps))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step(warm * max(cool, 0.02))
        state.update(parts=lesson.parts.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
        yield step + 1, {name: float(value.detach()) for name, value in losses.items()}


def pixels_of(seen: Sequence[Canvas]) -> Tensor:
    """(B, 3, 96, 96) as the processor makes them."""
    return torch.stack([normalise(one.pixels) for one in seen])


def encoded(pair: Any, texts: Sequence[str]) -> Tensor:
    """(T, D) texts by the text tower, of length one."""
    rows = [[NUMBERS[BEGIN], *(NUMBERS[word] for word in text.split()), NUMBERS[END]] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [NUMBERS[PAD]] * (longest - len(row)) for row in rows])  # causal: padding is never seen
    return F.normalize(pair.get_text_features(ids).pooler_output, dim=1)


def relevance(seen: Canvas, question: Asked) -> Tensor:
    """(144) how much each patch has to do with a question, in [0, 1]."""
    grid = np.zeros(seen.ink.shape[1:], dtype=np.float32)
    each = len(grid) // 3
    for row, column in question.cells:
        grid[row * each : (row + 1) * each, column * each : (column + 1) * each] = 0.3
    for place in question.about:
        grid = np.maximum(grid, np.minimum(seen.ink[place] / INK, 1))
    return torch.from_numpy(grid).flatten()


def named_ink(seen: Canvas, phrase: str) -> Tensor:
    """(144) how much each patch shows of what a phrase of one or two words names, in [0, 1]."""
    words = set(phrase.split())
    found = [ink for ink, thing in zip(seen.ink, seen.things, strict=True) if words <= {thing.kind, thing.colour}]
    total = np.sum(found, axis=0) if found else np.zeros(seen.ink.shape[1:], dtype=np.float32)
    return torch.from_numpy(np.minimum(total / INK, 1)).flatten()


def labels_of(seen: Sequence[Canvas]) -> list[Tensor]:
    """(B, 144) each: kind, colour and cell of what each patch shows; of the first two a higher number for nothing."""
    found: list[list[NDArray[np.int64]]] = [[], [], []]
    for one in seen:
        ink = one.ink.reshape(len(one.things), -1)
        nothing = ink.max(axis=0) < 0.06
        for values, names, attribute in zip(found, (KINDS, tuple(COLOURS)), ("kind", "colour"), strict=False):
            numbers = np.array([names.index(getattr(thing, attribute)) for thing in one.things])
            values.append(np.where(nothing, len(names), numbers[ink.argmax(axis=0)]))
        rows, columns = np.indices(one.ink.shape[1:]) * CELLS // one.ink.shape[1]
        found[2].append((CELLS * rows + columns).ravel())
    return [torch.from_numpy(np.stack(values)) for values in found]


def aligned(image: Tensor, labels: Sequence[Tensor], embed: Tensor, heads: Heads) -> dict[str, Tensor]:
    """How far features (B, N, C) for the decoder are from the words of what they show, and from telling their cell."""
    losses = {"cell": F.cross_entropy(heads.cell(image).flatten(0, 1), labels[2].flatten())}
    for number, (name, words) in enumerate({"kind": KINDS, "colour": tuple(COLOURS)}.items()):
        logits = 4 * image @ embed[[NUMBERS[word] for word in words]].T
        logits = torch.cat([logits, heads.nothing[number].expand(*logits.shape[:2], 1)], dim=2).flatten(0, 1)
        weight = torch.ones(logits.shape[1])
        weight[-1] = 0.2  # most patches show nothing
        losses[name] = F.cross_entropy(logits, labels[number].flatten(), weight)
    return losses


def kept_patches(seen: Canvas, rng: Generator, count: int) -> NDArray[np.int64]:
    """``count`` patches in order, those with ink before others."""
    order = rng.random(FEATURES) - (seen.ink.max(axis=0).ravel() > 0.02)
    return np.sort(np.argsort(order)[:count])


def questions_of(seen: Canvas, rng: Generator, slots: int) -> tuple[Tensor, Tensor]:
    """(slots · 11) tokens of questions with their answers, and the labels: at each place the token behind it."""
    known = list(asked(seen).values())
    by_kind = [list(rng.permutation(len(found))) for found in known]
    chosen: list[Asked] = []
    while len(chosen) < slots and any(by_kind):
        for found, places_left in zip(known, by_kind, strict=True):
            if places_left and len(chosen) < slots:
                chosen.append(found[places_left.pop()])
    ids, labels = np.full((slots, SLOT), NUMBERS[PAD]), np.full((slots, SLOT), IGNORED)
    for row, one in enumerate(chosen):
        prompt = [NUMBERS[word] for word in (*one.question.split(), ANSWER)]
        answer = [NUMBERS[word] for word in (*one.answer.split(), END)]
        whole = [*prompt, *answer]
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) - 1 : len(whole) - 1] = answer
    return torch.from_numpy(ids).flatten(), torch.from_numpy(labels).flatten()


def places(batch: int, slots: int) -> Tensor:
    """(B, slots · 11) positions: every question stands right behind the image."""
    return (1 + FEATURES + torch.arange(SLOT)).repeat(slots).expand(batch, -1)


def mask_of(image: int, slots: int) -> Tensor:
    """(1, 1, L, L) bool: a question sees the image and itself, causally."""
    length = 1 + image + slots * SLOT
    block = torch.cat([torch.zeros(1 + image, dtype=torch.long), 1 + torch.arange(slots).repeat_interleave(SLOT)])
    same = (block.unsqueeze(1) == block) | (block == 0)
    return (same & torch.ones(length, length, dtype=torch.bool).tril())[None, None]
