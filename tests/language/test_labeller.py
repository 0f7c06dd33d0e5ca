"""The next-token labeller: who sees whom, labels in parallel, and prefix methods on it."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.hidden import kept
from tokensieve.language.labeller import PADDING, PREFIX, Labeller, label_mask, label_positions
from tokensieve.language.words import END, IMAGE, Words

pytest.importorskip("transformers")

NAMES = ("red fox", "fox", "red panda", "great white shark", "tabby", "polar bear")
PROMPT = "the objects in the image are"
EXACT = {"atol": 1e-9, "rtol": 0}


def build() -> Labeller:
    """Small, in float64; 16 patches of an image of 64 × 64."""
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_heads=3, num_classes=0)
    labeller = Labeller(tower, Words.of([*NAMES, PROMPT]), width=24, hidden=48, layers=3, heads=2).double().eval()
    with torch.no_grad():
        for name, part in labeller.named_parameters():
            if part.dim() < 2:
                part += 0.2 * torch.randn_like(part)
            elif "language_model" in name:
                part *= 12  # of 0.02, which leaves layers without effect
    return labeller


def pictures(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_words_there_and_back() -> None:
    words = Words.of(NAMES)
    assert len(words) == 2 + len({word for name in NAMES for word in name.split()})
    for name in NAMES:
        assert words.decode([*words.encode(name), END, 5]) == name
    for text, why in (("red dog", "'dog', which is none of its 9"), (" ", "no word")):
        with pytest.raises(ts.TokensieveError, match=why):
            words.encode(text)


def test_the_mask_and_the_positions() -> None:
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 1, 2, -1]])
    features = torch.tensor([[True, True, True] + [False] * 7])
    mask, positions = label_mask(segments, features)[0, 0], label_positions(segments)[0]
    kind = segments[0].tolist()
    for row in range(9):
        for column in range(10):
            both_ways = row < 3 and column < 3
            expected = both_ways or (column <= row and kind[column] in (PREFIX, kind[row]))
            assert mask[row, column] == expected, (row, column)
    assert bool(mask.diagonal().all())
    assert positions[:9].tolist() == [0, 1, 2, 3, 4, 5, 4, 6, 5]


@torch.no_grad()
def test_each_label_alone_is_as_beside_others() -> None:
    model = build()
    outputs = model.get_image_features(pictures())
    prefix = model.prefix_ids(2, 16)
    labels = [model.words.encode(name) for name in NAMES]

    def logits(some: list[list[int]], pad: int = 0) -> list[Tensor]:
        ids = torch.tensor([token for label in some for token in label] + [END] * pad).expand(2, -1)
        of = [n for n, label in enumerate(some, start=1) for _ in label] + [PADDING] * pad
        segments = torch.cat([torch.zeros_like(prefix), torch.tensor(of).expand(2, -1)], dim=1)
        given: dict[str, Any] = {"segments": segments, "mm_encoder_outputs": {"image": outputs}}
        found = model(torch.cat([prefix, ids], dim=1), **given, logits_to_keep=ids.shape[1]).logits
        return list(found[:, : len(of) - pad].split([len(label) for label in some], dim=1))

    for beside, label in zip(logits(labels, pad=2), labels, strict=True):
        (alone,) = logits([label])
        assert alone.std() > 0.1
        torch.testing.assert_close(beside, alone, **EXACT)


@torch.no_grad()
def test_labels_are_those_of_a_search_without_cache() -> None:
    model, images = build(), pictures()
    for row, found in enumerate(model.label(images, 4, longest=3)):
        outputs = model.get_image_features(images[row : row + 1])
        prefix = model.prefix_ids(1, 16)

        def chances(label: list[int], prefix: Tensor = prefix, outputs: Any = outputs) -> Tensor:
            ids = torch.cat([prefix, torch.tensor([label], dtype=torch.int64)], dim=1)
            segments = torch.tensor([[PREFIX] * prefix.shape[1] + [1] * len(label)])
            answer = model(ids, segments=segments, mm_encoder_outputs={"image": outputs})
            return answer.logits[0, -1].softmax(dim=0)

        expected = []
        first = chances([])
        for token in sorted(range(IMAGE + 1, len(model.words)), key=lambda token: -first[token])[:4]:
            label, chance = [token], first[token]
            while len(label) < 3 and label[-1] != END:
                following = chances(label)
                label.append(int(following.argmax()))
                chance = chance * following[label[-1]]
            expected.append((model.words.decode(label), float(chance)))
        expected.sort(key=lambda one: -one[1])
        assert [one.text for one in found] == [text for text, _ in expected]
        assert [one.probability for one in found] == pytest.approx([chance for _, chance in expected], abs=1e-9)
    assert len({label.text for label in found}) == 4


@pytest.mark.parametrize("spec", ["divprune:tokens=6", "vispruner:tokens=6", "prefix-grid:tokens=6"])
@torch.no_grad()
def test_a_shorter_prefix_is_the_dense_one_under_a_mask(spec: str) -> None:
    model, images = build(), pictures()
    prefix, label = model.prefix_ids(2, 16), torch.tensor([model.words.encode("great white shark")] * 2)
    segments = torch.cat([torch.zeros_like(prefix), torch.ones_like(label)], dim=1)
    ids = torch.cat([prefix, label], dim=1)
    ts.apply(model, spec)
    first = model(prefix, images, use_cache=True)
    keep = kept(first.cache)
    assert keep.sum(dim=1).tolist() == [12, 12]
    in_two = model(label, segments=segments, cache=first.cache, use_cache=True).logits
    in_one = model(ids, images, segments, logits_to_keep=3).logits
    ts.remove(model)
    keep = torch.cat([keep, torch.ones_like(label, dtype=torch.bool)], dim=1)
    features = ids == IMAGE
    embeddings = model.language_model.embed_tokens(ids)
    embeddings = embeddings.masked_scatter(features.unsqueeze(2), model.get_image_features(images).pooler_output)
    mask = label_mask(segments, features) & (keep[:, None, None] | torch.eye(ids.shape[1], dtype=torch.bool))
    given = {"attention_mask": mask, "position_ids": label_positions(segments), "use_cache": False}
    states = model.language_model(inputs_embeds=embeddings, **given).last_hidden_state[:, -3:]
    expected = states @ model.language_model.embed_tokens.weight.T
    dense = model(ids, images, segments, logits_to_keep=3).logits
    assert (expected - dense).abs().max() > 1e-3
    torch.testing.assert_close(in_one, expected, **EXACT)
    torch.testing.assert_close(in_two, expected, **EXACT)


@torch.no_grad()
def test_compact_positions_are_a_prefix_of_fewer_features() -> None:
    model, images = build(), pictures(1)
    features = model.get_image_features(images)
    ts.apply(model, "prefix-grid:tokens=4:positions=compact")
    found = model.label(images, 3)
    ts.remove(model)
    features.pooler_output = features.pooler_output[:, [2, 6, 10, 14]]
    (expected,) = model.label(count=3, mm_encoder_outputs={"image": features})
    assert [one.text for one in found[0]] == [one.text for one in expected]
    assert [one.probability for one in found[0]] == pytest.approx([one.probability for one in expected], abs=1e-9)


@torch.no_grad()
def test_what_is_refused() -> None:
    model, images = build(), pictures(1)
    prefix, label = model.prefix_ids(1, 16), torch.tensor([model.words.encode("fox")])
    segments = torch.cat([torch.zeros_like(prefix), torch.ones_like(label)], dim=1)
    ts.apply(model, "cdpruner:tokens=6")
    assert len(model.label(images, 3)[0]) == 3
    with pytest.raises(ts.RefusedError, match=r"cdpruner reads the text .* second call"):
        model(torch.cat([prefix, label], dim=1), images, segments)
    ts.remove(model)
    with pytest.raises(ts.TokensieveError, match=r"1 images of 16 features .* got \[15\]"):
        model(prefix[:, 1:], images)
    with pytest.raises(ts.TokensieveError, match="no image was given"):
        model.label()
    with pytest.raises(ts.TokensieveError, match="got count=0"):
        model.label(images, 0)
    with pytest.raises(ts.TokensieveError, match="'the', which is none"):
        Labeller(model.vision_tower, Words.of(NAMES))
