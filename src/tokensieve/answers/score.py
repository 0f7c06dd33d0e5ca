"""Whether an answer is right, and figures over many: accuracy, and agreement with the dense model."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

BETWEEN_DIGITS = re.compile(r"(?<=\d)[.:](?=\d)")  # 3.5 and 10:30 stay what they are
KEPT = {".": "\ue000", ":": "\ue001"}  # stand in while all other punctuation goes
GONE = str.maketrans("", "", string.punctuation)
BACK = str.maketrans({held: mark for mark, held in KEPT.items()})


def plain(answer: str) -> str:
    """An answer as it is compared: lower case, without punctuation (a point or colon between digits stays) and without
    spaces but single ones between words, as tools for visual question answering do."""
    held = BETWEEN_DIGITS.sub(lambda found: KEPT[found.group()], answer.lower())
    return " ".join(held.translate(GONE).translate(BACK).split())


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer equals one of those that are right, compared as ``plain`` says."""
    return plain(answer) in {plain(one) for one in accepted}


class AnswerMeters:
    """Figures over answers, fed batch by batch.

    ``accuracy`` is the share in percent of answers that are right (``is_right``), and ``accuracy ±`` its standard error
    √(p(1 − p)/n); both only where every question has an answer. ``agree`` is the share in percent of questions to which
    model and dense model generate the same tokens, up to the end; ``KL`` the mean KL(dense ‖ model) of the
    distribution of the first token, in nats.
    """

    def __init__(self) -> None:
        self.right: list[bool] = []
        self.same: list[bool] = []
        self.kl: list[float] = []

    def update(self, first: Tensor, dense_first: Tensor, same: Sequence[bool], right: Sequence[bool]) -> None:
        """Add a batch.

        Args:
            first, dense_first: (B, V) logits of the first token.
            same: (B) whether the generated tokens are those of the dense model.
            right: (B) whether the answers are right; empty where none is known.
        """
        found, wanted = (logits.double().log_softmax(dim=1) for logits in (first, dense_first))
        self.kl += F.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1).tolist()
        self.same += same
        self.right += right

    @property
    def count(self) -> int:
        """How many questions there were."""
        return len(self.same)

    def compute(self) -> dict[str, float]:
        """The figures by name, accuracy first."""
        figures: dict[str, float] = {}
        if self.right and len(self.right) == self.count:
            share = sum(self.right) / self.count
            figures["accuracy"] = 100 * share
            figures["accuracy ±"] = 100 * math.sqrt(share * (1 - share) / self.count)
        figures["agree"] = 100 * sum(self.same) / self.count
        figures["KL"] = math.fsum(self.kl) / self.count
        return figures
