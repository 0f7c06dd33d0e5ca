"""Photographs, DeiT-Tiny's patches of them and its own answers, for the labeller: made once and kept in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from tokensieve.utils.files import replacing

HELD_OUT = 3  # of ten photographs of imagenet-dev
BATCH = 25


@dataclass(frozen=True)
class Photographs:
    """Files and the class of each, as ImageNet numbers them."""

    files: tuple[Path, ...]
    classes: tuple[int, ...]

    @staticmethod
    def split(data: Path) -> tuple[Photographs, Photographs]:
        """Those to train on, imagenette's training images and seven of ten photographs of imagenet-dev, and the rest of
        imagenet-dev, which nothing is trained on."""
        numbers = {wnid: n for n, wnid in enumerate((data / "imagenet-dev/class_map.txt").read_text().split())}
        dev = sorted((data / "imagenet-dev/val").glob("*/*"))
        train = sorted((data / "imagenette/train").glob("*/*"))
        held = [file for n, file in enumerate(dev) if n % 10 < HELD_OUT]
        rest = [file for n, file in enumerate(dev) if n % 10 >= HELD_OUT]
        return tuple(  # type: ignore[return-value]
            Photographs(tuple(files), tuple(numbers[file.parent.name] for file in files))
            for files in (train + rest, held)
        )


def class_names() -> list[str]:
    """What ImageNet's 1000 classes are called: the first of each one's names."""
    info = ImageNetInfo()
    return [info.index_to_description(number).split(", ")[0] for number in range(info.num_classes())]


@dataclass(frozen=True)
class Taught:
    """What the teacher says of views of photographs.

    Attributes:
        patches: of each view, (P, N, C) float16, what its last block and norm give of the patches of P photographs.
        answers: of each view, (P, 10) int64, its ten most probable classes.
    """

    patches: tuple[Tensor, ...]
    answers: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.answers))

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The patches and the answers of some, counted view by view."""
        views = len(self.answers)
        of = [(int(number) % views, int(number) // views) for number in numbers]
        patches = torch.stack([self.patches[view][at] for view, at in of])
        return patches.float(), torch.stack([self.answers[view][at] for view, at in of])


def images(tower: nn.Module, photographs: Photographs, training: bool) -> Any:
    """A function from a number to a view (3, H, W) of that photograph: a crop at random, or the whole in the middle."""
    from PIL import Image

    config = resolve_data_config({}, model=tower)
    crops: dict[str, Any] = {"scale": (0.3, 1.0), "auto_augment": None, "color_jitter": None, "re_prob": 0.0}
    how = crops if training else {}
    transform: Any = create_transform(**config, is_training=training, **how)
    return lambda number: transform(Image.open(photographs.files[number]).convert("RGB"))


def taught(teacher: Any, photographs: Photographs, views: int, folder: Path) -> Taught:
    """The patches and the answers of the teacher, from ``folder`` where they are there already.

    Args:
        teacher: a vision transformer of timm, in evaluation mode.
        photographs: which.
        views: of each: the first is the whole, in the middle, the others are crops at random.
        folder: where they are kept, 75 kB a photograph and view.
    """
    patches: list[Tensor] = []
    answers: list[Tensor] = []
    for view in range(views):
        files = [folder / f"{what}-{len(photographs.files)}-{view}.npy" for what in ("patches", "answers")]
        if not files[1].exists():
            _write(teacher, photographs, view, files[0], files[1])
        patches.append(torch.from_numpy(np.load(files[0], mmap_mode="c")))
        answers.append(torch.from_numpy(np.load(files[1])))
    return Taught(tuple(patches), tuple(answers))


@torch.inference_mode()
def _write(teacher: Any, photographs: Photographs, view: int, patches: Path, answers: Path) -> None:
    torch.manual_seed(view)
    number = len(photographs.files)
    prepared = images(teacher, photographs, training=view > 0)
    said = np.empty((number, 10), dtype=np.int64)
    with replacing(patches) as beside:
        shape = (number, teacher.patch_embed.num_patches, teacher.num_features)
        kept = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, number, BATCH):
            some = range(start, min(number, start + BATCH))
            states = teacher.forward_features(torch.stack([prepared(n) for n in some]))
            kept[some.start : some.stop] = states[:, teacher.num_prefix_tokens :].half().numpy()
            said[some.start : some.stop] = teacher.forward_head(states).topk(10, dim=1).indices.numpy()
        kept.flush()
    with replacing(answers) as beside, beside.open("wb") as file:
        np.save(file, said)
    print(f"view {view + 1} of {number} photographs", flush=True)
