"""What an exported model is worth: its speed-up over the dense model in the same format, beside that in PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tokensieve.engine.apply import remove
from tokensieve.export.format import Format
from tokensieve.export.run import Exported
from tokensieve.export.torch_program import TRACED_BATCH, trace
from tokensieve.measure import speed
from tokensieve.measure.macs import count
from tokensieve.measure.speed import Timing
from tokensieve.models.load import share_weights


@dataclass(frozen=True)
class Realised:
    """Speed-ups over the dense model at one batch size.

    Attributes:
        batch: images per call.
        F: dense MACs over those of the reduced model.
        eager: dense and reduced model in PyTorch.
        exported: dense and reduced model in the format of the file.
    """

    batch: int
    F: float
    eager: tuple[Timing, Timing]
    exported: tuple[Timing, Timing]

    @property
    def S_eager(self) -> float:
        """Speed-up of the model over the dense one, both in PyTorch."""
        return self.eager[1].speedup(self.eager[0])

    @property
    def S_exported(self) -> float:
        """Speed-up of the exported model over the exported dense one."""
        return self.exported[1].speedup(self.exported[0])

    @property
    def kept(self) -> float:
        """The share of the eager S/F that the exported model keeps."""
        return self.S_exported / self.S_eager

    @property
    def noisy(self) -> bool:
        """Whether the machine was disturbed."""
        return any(speed.noisy(timing) for timing in (*self.eager, *self.exported))


def beside_dense(
    model: nn.Module,
    exported: Exported,
    images: Tensor,
    batches: Sequence[int],
    *,
    rounds: int = 10,
    on_round: Callable[[], None] | None = None,
) -> Iterator[Realised]:
    """Time ``model`` and ``exported`` against the dense model, in PyTorch and in the same format.

    PyTorch and the other runtime are timed one after the other, because their threads disturb each other; dense and
    reduced model are interleaved.

    Args:
        model: the model with methods applied, in evaluation mode.
        exported: what ``ts.export`` made of it.
        images: (B, C, H, W), at least as many as the largest batch.
        batches: batch sizes.
        rounds: timings of each model.
        on_round: called after every timing.
    """
    dense = remove(share_weights(model)).eval()
    F = count(dense, images[:1]).total / count(model, images[:1]).total
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / exported.path.name
        _write(exported.form, dense, reference, images)
        files = {"dense": exported.form.open(reference), "reduced": exported.open()}
        for batch in batches:
            x = images[:batch]
            eager = speed.measure({"dense": dense, "reduced": model}, x, rounds=rounds, on_round=on_round)
            file = speed.measure(files, x, rounds=rounds, on_round=on_round)
            yield Realised(batch, F, (eager["dense"], eager["reduced"]), (file["dense"], file["reduced"]))


def _write(form: Format, dense: nn.Module, path: Path, images: Tensor) -> None:
    traced = images[:1].expand(TRACED_BATCH, -1, -1, -1).contiguous()
    form.write(trace(dense, traced), path)
