"""Retrieval of images by their features: how well a reduced model's features find images among the dense model's.

That an image of the same class is among the k nearest is the recall at k of metric learning (Oh Song et al., 2016,
arXiv:1511.06452, section 6); that one certain image is, that of nearest-neighbour search (Jégou et al., Product
quantization for nearest neighbor search, 2011, section V).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.data.stream import NO_LABEL
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure.judge import Judge
from tokensieve.measure.options import NEIGHBOURS

SIMILARITIES = 2**24  # held at a time, in float32 64 MB


@dataclass(frozen=True)
class RetrievalOutcome:
    """Figures of retrieval over a set of images.

    Attributes:
        images: how many there were.
        metrics: in percent, by name, see ``RetrievalMeters``.
    """

    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Retrieval(Judge):
    """Compares features (B, D) of images: those of a model are looked up among those of the dense model.

    Attributes:
        neighbours: every k.
    """

    neighbours: tuple[int, ...] = NEIGHBOURS

    def answer(self, model: Callable[[Tensor], Any], images: Tensor, labels: Any) -> Tensor:
        """Features (B, D) of length 1, float32 on the CPU."""
        with torch.inference_mode():
            features = model(images)
            if not isinstance(features, Tensor) or features.dim() != 2:
                shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise TokensieveError(
                    f"the model does not answer with features (images, D) but with {shape}: give one that pools"
                )
            features = features.float().cpu()
            if not features.isfinite().all():
                raise TokensieveError("features are not finite, so no image is near another: try another dtype")
            return F.normalize(features, dim=-1)

    def meters(self, answers: Tensor) -> RetrievalMeters:
        return RetrievalMeters(self.neighbours)

    def check(self, images: int) -> None:
        """Raise where ``images`` have fewer neighbours than are asked for.

        Raises:
            TokensieveError: says how many.
        """
        most = max(self.neighbours)
        if most > images - 1:
            raise TokensieveError(
                f"{most} neighbours are asked for, and {images} images have {max(images - 1, 0)} others each: "
                "give a smaller --k, or more images"
            )


class RetrievalMeters:
    """Features and labels of all images, looked up once every image is there.

    Neighbours are told by cosine similarity in float32; of images that are equally near, those that come first are
    nearer. The figures, each a share in percent, for every k:

    - ``recall@k``: of the images with a label, those that have one of the same class, themselves left out, among the
      k nearest in the dense model's gallery, the query's features being the model's own. An image that is alone in its
      class is never found.
    - ``own@k``: the same in the gallery of the model's own features, as where a whole collection is indexed anew.
    - ``same@k``: the images whose own features by the dense model are among the k nearest.

    Where the images have fewer than two classes, or each is alone in its own, there is ``same@k`` alone.

    Args:
        neighbours: every k.
    """

    def __init__(self, neighbours: Sequence[int] = NEIGHBOURS) -> None:
        self.neighbours = tuple(neighbours)
        self.queries: list[Tensor] = []
        self.gallery: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, features: Tensor, dense: Tensor, labels: Tensor) -> None:
        """Add a batch: features (B, D) of length 1 by the model and by the dense model, labels (B,)."""
        self.queries.append(features)
        self.gallery.append(dense)
        self.labels.append(labels.cpu())

    def add(self, other: RetrievalMeters) -> None:
        """Add the images that another one has seen."""
        self.queries += other.queries
        self.gallery += other.gallery
        self.labels += other.labels

    def compute(self) -> RetrievalOutcome:
        """The figures over everything seen so far.

        Warns where images are alone in their class, or their classes are of no use.

        Raises:
            TokensieveError: fewer images than neighbours.
        """
        queries, gallery, labels = (torch.cat(parts) for parts in (self.queries, self.gallery, self.labels))
        Retrieval(self.neighbours).check(len(labels))
        same, recall = ranks(queries, gallery, labels)
        labelled = labels != NO_LABEL
        found: dict[str, Tensor] = {}
        if _classes_tell(labels[labelled]):
            _, own = ranks(queries, queries, labels)
            found = {"recall": recall[labelled], "own": own[labelled]}
        found["same"] = same
        shares = {
            f"{name}@{k}": 100 * (rank < k).double().mean().item()
            for name, rank in found.items()
            for k in self.neighbours
        }
        return RetrievalOutcome(len(labels), shares)


def _classes_tell(labels: Tensor) -> bool:
    """Whether images can be looked for by their classes; warns of those that cannot be found."""
    _, sizes = labels.unique(return_counts=True)
    alone = int((sizes == 1).sum())
    useful = len(sizes) > 1 and alone < len(sizes)
    said = ""
    if not useful:
        said = "the images have fewer than two classes, or each is alone in its own: none is looked for by its class"
    elif alone:
        said = f"{alone} of {len(labels)} images are alone in their class: no neighbour counts as right for them"
    if said:
        warnings.warn(said, TokensieveWarning, stacklevel=3)
    return useful


def ranks(queries: Tensor, gallery: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many images are nearer to each query than its own image, and than the nearest other one of its class.

    Args:
        queries, gallery: (N, D) features of length 1 of the same N images in the same order.
        labels: (N,) their classes.

    Returns:
        Two tensors (N,) of int64: the rank of the image itself, from 0; and that of the nearest other image of the same
        class, the image itself being left out, N where there is none.
    """
    count = len(labels)
    own, same_class = (torch.empty(count, dtype=torch.int64) for _ in range(2))
    rows = max(1, SIMILARITIES // count)
    for places in torch.arange(count).split(rows):
        similarity = queries[places] @ gallery.T
        own[places] = _rank(similarity, places)
        similarity.scatter_(1, places.unsqueeze(1), -torch.inf)
        fellows = similarity.masked_fill(labels[places].unsqueeze(1) != labels, -torch.inf)
        nearest, place = fellows.max(dim=1).values, fellows.argmax(dim=1)  # of equal ones argmax gives the first
        same_class[places] = _rank(similarity, place).masked_fill(nearest == -torch.inf, count)
    return own, same_class


def _rank(similarity: Tensor, places: Tensor) -> Tensor:
    """(Q,): how many columns of each row (Q, N) lie before the column ``places`` in descending order, by value and
    then by place."""
    value = similarity.gather(1, places.unsqueeze(1))
    before = torch.arange(similarity.shape[1]) < places.unsqueeze(1)
    return ((similarity > value) | ((similarity == value) & before)).sum(dim=1)
