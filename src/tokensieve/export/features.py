"""Tower, projector and prefix method of a vision-language model as one module: pictures in, kept features out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokensieve.engine.probe import evaluating, probe_input
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.export.check import CANDIDATES, CHECKED, NUDGE, Agreement, random_images
from tokensieve.export.format import Format, Ports, opened, reason
from tokensieve.language.apply import applied
from tokensieve.language.images import stacked
from tokensieve.language.running import features_seen
from tokensieve.language.sieved import plan_of
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.methods.language._prefix import PrefixMethod, PrefixView
from tokensieve.ops.rows import take_rows

MOST_NODES = 10_000
FEATURES = Ports("pixel_values", ("features", "places"))


class Reducer(nn.Module):
    """The kept features of pictures, ready to be given to a decoder as precomputed embeddings.

    Args:
        model: a vision-language model of transformers with one prefix method applied that reads no text and keeps the
            same number of every image, and methods in its tower or none; it takes pictures of one size as
            ``pixel_values`` (B, 3, H, W) and nothing beside them.

    Raises:
        RefusedError: another model, or other methods; says which.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        plan = plan_of(model)
        if plan is None or plan.prefix is None:
            raise RefusedError(
                f"{type(model).__name__} has no method applied in front of its decoder: apply one first, such as "
                'ts.apply(model, "divprune:tokens=64")'
            )
        _refuse(plan.prefix, [one for one in applied(model) if not isinstance(one, Method) and one != plan.prefix])
        self.method: PrefixMethod = plan.prefix
        self.core: Any = plan.host.core

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) to ``features`` (B, K, C), those that are kept, in order, and their ``places`` (B, K)
        int64 among the N of a picture, ascending."""
        outputs = self.core.get_image_features(pixel_values=pixel_values)
        pooled = outputs.pooler_output
        features = pooled if isinstance(pooled, Tensor) else torch.stack(list(pooled))
        pictures, number, channels = features.shape
        count = self.method.count(number)
        if count == number:
            return features, torch.arange(number, device=features.device).repeat(pictures, 1)
        noted = features_seen(outputs)
        assert noted is not None  # the core is taken over, and notes what it gives
        view = PrefixView(
            method=self.method,
            features=features,
            count=count,
            text=(features.new_zeros(0, channels),) * pictures,
            grid=noted.grids[0] if noted.grids else None,
            signals=stacked([noted.part(picture)[0] for picture in range(pictures)]),
        )
        kept = self.method.choose(view)
        return take_rows(features, kept.places) if kept.values is None else kept.values, kept.places

    def example(self, model: nn.Module) -> Tensor:
        """A picture (1, 3, H, W) of the size that the tower of ``model`` is for, after one run on it.

        Raises:
            RefusedError: the model takes more than such pictures.
        """
        picture = probe_input(model)
        name = type(self.core).__name__
        try:
            with evaluating(model):
                features, places = self(picture)
        except RefusedError:  # a method that is in the wrong place here has said so
            raise
        except Exception as error:  # whatever a host's code raises that is given too little
            raise RefusedError(
                f"{name} does not make features of a picture {tuple(picture.shape)} alone: {reason(error)}; hosts of "
                "pictures of one size are exported, such as LLaVA 1.5"
            ) from error
        if features.shape[:2] != places.shape or len(places) != 1:
            raise RefusedError(
                f"{name} makes {features.shape[0]} images of one picture: hosts whose pictures are an image each are "
                "exported, such as LLaVA 1.5"
            )
        return picture


def _refuse(prefix: PrefixMethod, others: list[Any]) -> None:
    if others:
        raise RefusedError(
            f"{spell(others)} acts in another place than the tower and in front of the decoder, which is all that a "
            f"file of features holds: export with {prefix.name} alone, and apply the others where the decoder runs"
        )
    if prefix.reads_text:
        raise RefusedError(
            f"{prefix.name} reads the text around the image, and a file of features is given pictures alone: choose a "
            "method that reads features, divprune for one"
        )
    if prefix.ragged:
        raise RefusedError(
            f"{prefix.name} keeps a different number of tokens of every image, and an exported graph has one shape for "
            "all: choose a method that keeps the same number of each, divprune for one"
        )


def trace_features(reducer: Reducer, picture: Tensor) -> ExportedProgram:
    """The reducer as one graph, for one picture (1, 3, H, W) at a time.

    Raises:
        RefusedError: the model or a method cannot be one graph; says why.
    """
    try:
        with evaluating(reducer), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            program = torch.export.export(reducer, (picture,))
    except Exception as error:  # whatever the model's or a method's code raises while it is traced
        what = f"{type(reducer.core).__name__} with {reducer.method.name}"
        raise RefusedError(f"{what} cannot be exported by torch.export: {reason(error)}") from error
    nodes = len(program.graph.nodes)
    if nodes > MOST_NODES:
        raise RefusedError(
            f"{reducer.method} is {nodes} nodes of a graph, since every step of its choice is there, and runtimes open "
            f"{MOST_NODES} in good time: choose a method with fewer steps, divprune for one"
        )
    return program


def settled_pictures(reducer: Reducer, given: Tensor | None, like: Tensor) -> Tensor:
    """Pictures whose kept places are not chosen by rounding alone: those of ``given``, or random ones.

    Raises:
        TokensieveError: none is left.
    """
    pictures = random_images(CANDIDATES, like) if given is None else given
    generator = torch.Generator().manual_seed(2)
    steady: list[Tensor] = []
    with evaluating(reducer):
        for picture in pictures.split(1):
            noise = torch.randn(picture.shape, generator=generator).to(picture)
            if torch.equal(reducer(picture)[1], reducer(picture + NUDGE * (1 + picture.abs()) * noise)[1]):
                steady.append(picture)
            if given is None and len(steady) == CHECKED:
                break
    if not steady:
        raise TokensieveError(
            f"the exported file cannot be checked: in all of {len(pictures)} pictures the choice of tokens hangs on "
            "rounding; give other pictures as the example"
        )
    return torch.cat(steady)


def compare_features(reducer: Reducer, form: Format, path: Path, pictures: Tensor, tolerance: float) -> Agreement:
    """Run the reducer and an exported file on the same pictures, one at a time.

    Raises:
        RefusedError: other places are kept, or the features differ by more than ``tolerance``.
    """
    run = opened(form, form.open_all, path)
    furthest = 0.0
    for picture in pictures.split(1):
        with evaluating(reducer):
            features, places = reducer(picture)
        try:
            with torch.inference_mode():
                theirs, chosen = run(picture)
        except Exception as error:  # every runtime has its own
            raise RefusedError(f"the exported file does not run: {reason(error)}; nothing was written") from error
        if chosen.dtype != torch.int64 or not torch.equal(chosen.cpu(), places.cpu()):
            raise RefusedError("the exported file keeps other tokens than the model; nothing was written")
        difference = (theirs.float().cpu() - features.float().cpu()).abs().max().item()
        if theirs.shape != features.shape or not difference <= tolerance:  # written so that NaN fails
            raise RefusedError(
                f"the features of the exported file differ from the model's by {difference:.2g} where {tolerance:.2g} "
                "is allowed; nothing was written"
            )
        furthest = max(furthest, difference)
    return Agreement(len(pictures), furthest, same_top1=True)
