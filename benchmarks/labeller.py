"""Object recognition as next-token prediction (arXiv 2312.02142) on DeiT-Tiny's patches: recall against prefix size.

python -m benchmarks labeller --data ../shared/data --cache FOLDER

A decoder of two layers (``tokensieve.language.labeller``) learns to spell out the names of DeiT-Tiny's own five most
probable classes on imagenette's training images and seven of ten photographs of imagenet-dev; the tower stays as it is,
and no true class is shown. Where the authors begin with a language model, the vectors of words begin with those by
which the teacher's head knows its classes. Then the prefix of the other photographs is cut by each method, which
nothing was trained with. recall@10 is the share of names that are among ten labels of the labeller: those of the
teacher's five classes, of its first one, of the true class. Classes of one name count as one.

The decoder is kept in FOLDER beside the patches, which take 75 kB a photograph and view.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tokensieve as ts
from benchmarks.photographs import Photographs, Taught, class_names, images, taught
from benchmarks.report import table
from tokensieve.errors import TokensieveError
from tokensieve.language.labeller import PADDING, PREFIX, PROMPT, Labeller
from tokensieve.language.words import END, Words
from tokensieve.utils.files import replacing

TAUGHT = 5  # names of the teacher that the labeller learns, and is asked for
METHODS = ("divprune", "prefix-random", "prefix-grid", "visionzip", "vispruner")
SIZES = (128, 64, 32, 16)
LENGTH = 0.5  # of a word's vector at first
RATE, WARMUP, DECAY = 1.5e-3, 100, 0.05


def options(parser: argparse.ArgumentParser) -> None:
    """Which photographs, how long, where to."""
    parser.add_argument("--data", type=Path, required=True, help="folder with weights, imagenet-dev and imagenette")
    parser.add_argument("--cache", type=Path, required=True, help="folder for patches and the trained decoder")
    parser.add_argument("--views", type=int, default=3, help="of each training photograph")
    parser.add_argument("--steps", type=int, default=700, help="of training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="held-out photographs, default all")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/labeller.md"))


def run(given: argparse.Namespace) -> None:
    """Train where no decoder lies in the cache, measure, write."""
    given.cache.mkdir(parents=True, exist_ok=True)
    train, held = Photographs.split(given.data)
    names = class_names()
    labeller = made(given.data, names)
    kept = given.cache / f"decoder-{given.views}-{given.steps}-{given.batch}.safetensors"
    if not kept.exists():
        lessons = taught(labeller.vision_tower, train, given.views, given.cache)
        seconds = fit(labeller, lessons, names, given.steps, given.batch)
        state = {name: value for name, value in labeller.state_dict().items() if not name.startswith("vision_tower")}
        with replacing(kept) as beside:
            save_file(state, beside, {"seconds": f"{seconds:.0f}"})
    missing = labeller.load_state_dict(load_file(kept), strict=False)
    if missing.unexpected_keys or any(not name.startswith("vision_tower") for name in missing.missing_keys):
        raise TokensieveError(f"{kept} holds another decoder than this one: remove it")
    found = measured(labeller.eval(), held, names, given.limit)
    size = sum(one.numel() for name, one in labeller.named_parameters() if not name.startswith("vision_tower"))
    shown = min(given.limit or len(held.files), len(held.files))
    about = {"photographs": len(train.files), "views": given.views, "steps": given.steps, "batch": given.batch}
    write(given.output, {**about, "parameters": size, "held_out": shown, "rows": found})


def made(data: Path, names: Sequence[str]) -> Labeller:
    """A labeller on DeiT-Tiny whose decoder knows nothing yet but words: where the authors begin with a language model,
    the vector of a word here is at first the mean of those by which the teacher's head knows the classes called so."""
    tower: Any = timm.create_model("deit_tiny_patch16_224").eval()
    weights = load_file(data / "weights/deit_tiny_patch16_224.safetensors")
    tower.load_state_dict({name: value.float() for name, value in weights.items()})
    torch.manual_seed(0)
    labeller = Labeller(tower.requires_grad_(False), Words.of([*names, PROMPT]), hidden=256)
    known: dict[int, list[Tensor]] = {}
    for name, vector in zip(names, torch.nn.functional.normalize(tower.head.weight, dim=1), strict=True):
        for word in labeller.words.encode(name):
            known.setdefault(word, []).append(vector)
    with torch.no_grad():
        for word, vectors in known.items():
            labeller.language_model.embed_tokens.weight[word] = LENGTH * torch.stack(vectors).mean(dim=0)
        torch.nn.init.eye_(labeller.multi_modal_projector.weight)
    return labeller


def fit(labeller: Labeller, lessons: Taught, names: Sequence[str], steps: int, batch: int) -> float:
    """Train all but the tower; the seconds that it took."""
    learned = [one for name, one in labeller.named_parameters() if not name.startswith("vision_tower")]
    matrices = [one for one in learned if one.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": [one for one in learned if one.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.98), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=min(0.5, WARMUP / steps), cycle_momentum=False
    )
    spelled = [labeller.words.encode(name) for name in names]
    order = torch.Generator().manual_seed(0)
    begun, mean = time.perf_counter(), 0.0
    rows = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(len(lessons), generator=order)])
        some, rows = rows[:batch], rows[batch:]
        patches, answers = lessons.take(some)
        labels = [[spelled[name] for name in row] for row in answers[:, :TAUGHT].tolist()]
        loss = lesson(labeller, patches, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if not step else 0.98 * mean + 0.02 * loss.item()
        if step % 25 == 24:
            print(f"step {step + 1}: loss {mean:.3f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return time.perf_counter() - begun


def lesson(labeller: Labeller, patches: Tensor, labels: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Minus the mean log-probability of the labels of images, given as tokens: the product of those of their tokens."""
    outputs = labeller.features_of(patches)
    prefix = labeller.prefix_ids(*patches.shape[:2])
    longest = max(sum(map(len, row)) for row in labels)
    ids = torch.full((len(labels), longest), END)
    segments = torch.full((len(labels), longest), PADDING)
    aims = torch.full((len(labels), longest), -100)
    first = torch.zeros(len(labels), len(labeller.words))
    for number, row in enumerate(labels):
        start = 0
        for label, tokens in enumerate(row, start=1):
            at = slice(start, start + len(tokens))
            ids[number, at], segments[number, at] = torch.tensor(tokens), label
            aims[number, at] = torch.tensor([*tokens[1:], END])
            first[number, tokens[0]] += 1
            start += len(tokens)
    answer = labeller(
        torch.cat([prefix, ids], dim=1),
        segments=torch.cat([torch.full_like(prefix, PREFIX), segments], dim=1),
        mm_encoder_outputs={"image": outputs},
        logits_to_keep=longest + 1,
    )
    total = first.sum()
    begins = -(answer.logits[:, 0].log_softmax(dim=1) * first).sum()
    rest = torch.nn.functional.cross_entropy(answer.logits[:, 1:].flatten(0, 1), aims.flatten(), reduction="sum")
    loss: Tensor = (begins + rest) / total
    return loss


@torch.no_grad()
def measured(labeller: Labeller, held: Photographs, names: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
    """Recalls of the dense prefix and of each method at each size."""
    number = min(limit or len(held.files), len(held.files))
    prepared = images(labeller.vision_tower, held, training=False)
    batches = [torch.stack([prepared(n) for n in range(s, min(number, s + 25))]) for s in range(0, number, 25)]
    answers = torch.cat([labeller.vision_tower(batch).topk(10, dim=1).indices for batch in batches]).tolist()
    wanted = {
        f"the teacher's {TAUGHT}": [{names[one] for one in row[:TAUGHT]} for row in answers],
        "its first": [{names[row[0]]} for row in answers],
        "the true class": [{names[one]} for one in held.classes[:number]],
    }
    patches = labeller.vision_tower.patch_embed.num_patches
    own = _recalls([{names[one] for one in row} for row in answers], wanted)
    found: list[dict[str, Any]] = [{"prefix": "DeiT-Tiny's own ten", "tokens": None, **own}]
    for method in ("dense", *METHODS):
        encoded: list[Any] = []  # by the tower once a method, with what the method wants to know of it
        for size in SIZES if method != "dense" else (patches,):
            if method != "dense":
                ts.apply(labeller, f"{method}:tokens={size}")
            encoded = encoded or [labeller.get_image_features(batch) for batch in batches]
            said = [row for one in encoded for row in labeller.label(count=10, mm_encoder_outputs={"image": one})]
            ts.remove(labeller)
            recalls = _recalls([{label.text for label in row} for row in said], wanted)
            found.append({"prefix": method, "tokens": size, **recalls})
            print(json.dumps(found[-1]), flush=True)
    return found


def _recalls(said: Sequence[set[str]], wanted: dict[str, list[set[str]]]) -> dict[str, list[float]]:
    """The mean recall and its standard error, by what is asked for."""
    result = {}
    for what, sets in wanted.items():
        shares = torch.tensor([len(have & want) / len(want) for have, want in zip(said, sets, strict=True)])
        result[what] = [shares.mean().item(), (shares.std() / len(shares) ** 0.5).item()]
    return result


def write(output: Path, told: dict[str, Any]) -> None:
    """The table, and beside it the numbers as JSON."""
    found = told["rows"]
    columns = [name for name in found[0] if name not in ("prefix", "tokens")]
    rows = [
        [one["prefix"], str(one["tokens"] or "")]
        + [f"{100 * one[name][0]:.1f} ± {100 * one[name][1]:.1f}" for name in columns]
        for one in found
    ]
    lines = [
        "# A next-token labeller on DeiT-Tiny's patches: recall@10 against prefix size",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        f"Trained on {told['photographs']} photographs, views of each: {told['views']}, {told['steps']} steps of "
        f"{told['batch']} views; {told['parameters'] / 1e6:.2f} M parameters. Measured on {told['held_out']} others; "
        f"percent ± standard error. torch {torch.__version__}, timm {timm.__version__}.",
        "",
        *table(["prefix", "tokens", *columns], rows),
    ]
    with replacing(output) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with replacing(output.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
