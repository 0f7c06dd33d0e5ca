"""Train the question model of the demo and write its weights into the package.

    python scripts/train_questions.py FOLDER [--pair-steps 1000] [--model-steps 1200] [--canvases 8000]

FOLDER holds the losses (log.jsonl) and what an interrupted run goes on from. First the CLIP pair, then, its vision
tower frozen, the LLaVA: see ``tokensieve.demo.questions.train``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tokensieve.demo.questions.model import WEIGHTS, empty, packed
from tokensieve.demo.questions.train import Lesson, model_lesson, pair_lesson, train
from tokensieve.utils.files import replacing

EVERY = 25  # steps between two lines of the log
SAVED = 25  # steps between two states to go on from


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pair-steps", type=int, default=1000)
    parser.add_argument("--model-steps", type=int, default=1200)
    parser.add_argument("--canvases", type=int, default=8000, help="different ones")
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, pair = empty()
    first = pair_lesson(pair, model)
    learn("pair", first, given.pair_steps, given)
    model.model.vision_tower.load_state_dict(pair.vision_model.state_dict())
    learn("model", model_lesson(model, first.heads), given.model_steps, given)
    with replacing(WEIGHTS) as beside:
        save_file(packed(model, pair), beside)


def learn(name: str, lesson: Lesson, steps: int, given: argparse.Namespace) -> None:
    """Train one of the two, from where it stopped."""
    file = given.folder / f"{name}.pt"
    state: dict[str, Any] = torch.load(file) if file.exists() else {}
    if state and state["step"] >= steps:
        lesson.parts.load_state_dict(state["parts"])
        return
    since, means = time.monotonic(), {}
    for step, losses in train(lesson, given.canvases, steps, given.batch, state):
        for key, value in losses.items():
            means[key] = means.get(key, 0.0) + value / EVERY
        if step % EVERY == 0:
            line = {"lesson": name, "step": step, **means, "seconds": time.monotonic() - since}
            with open(given.folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
            means = {}
        if step % SAVED == 0 or step == steps:
            beside = file.with_suffix(".part")
            torch.save(state, beside)
            os.replace(beside, file)


if __name__ == "__main__":
    main()
