"""Ask a vision-language model about images, and collect which patches stayed in front of its decoder and inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tokensieve.answers.generate import answers_of
from tokensieve.answers.prompts import Inputs, ProcessorPrompts, placed
from tokensieve.answers.variants import refuse_reduced
from tokensieve.data.questions import Question
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.apply import apply, encodes_text, remove
from tokensieve.language.encoder import TextEncoder
from tokensieve.language.grids import grids_of
from tokensieve.language.host import host_of
from tokensieve.language.kept import KeptTokens, watching
from tokensieve.methods._config import Config
from tokensieve.methods._spec import spell
from tokensieve.methods._view import plane_of
from tokensieve.show.maps import Row, SiteMap, State


def answer_rows(
    model: nn.Module,
    prompts: ProcessorPrompts,
    images: Sequence[tuple[str, Image.Image]],
    questions: Sequence[str],
    variants: Sequence[Sequence[Config]],
    *,
    text_encoder: TextEncoder | None = None,
    max_new_tokens: int = 16,
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """One row per (image, variant), images first: for each question the patches that stay in front of the decoder and
    behind each site in it, side by side. The model is handed back as it came.

    Args:
        model: a dense vision-language model of transformers, in evaluation mode.
        prompts: makes its inputs.
        images: names and RGB images.
        questions: asked about each image.
        variants: compositions of which one method at least acts around the decoder.
        text_encoder: for the methods that compare patches with the text by one.
        max_new_tokens: of an answer.
        step: called after every row.

    Raises:
        TokensieveError: there is no variant or question, or a variant acts in the tower alone.
        RefusedError: the tokens of an image lie on no grid that is known.
    """
    if not variants or not questions:
        raise TokensieveError(
            "nothing to show: give at least one --method, such as divprune:keep=0.25, and a --question"
        )
    refuse_reduced(model)
    asked = _Asked(model, prompts, images, questions, max_new_tokens)
    columns: list[list[Row]] = []
    for methods in variants:
        encoder = text_encoder if encodes_text(methods) else None
        apply(model, tuple(methods), text_encoder=encoder)
        try:
            column = []
            for number in range(len(images)):
                column.append(asked.row(number, spell(tuple(methods))))
                step()
            columns.append(column)
        finally:
            remove(model)
    return [column[number] for number in range(len(images)) for column in columns]


class _Asked:
    """A model, and what it is asked; the dense model answers when this is made."""

    def __init__(
        self,
        model: nn.Module,
        prompts: ProcessorPrompts,
        images: Sequence[tuple[str, Image.Image]],
        questions: Sequence[str],
        tokens: int,
    ) -> None:
        self.model, self.prompts, self.tokens = model, prompts, tokens
        self.images, self.questions = images, questions
        self.host = host_of(model, "show")
        self.depth = len(self.host.layers)
        weights = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        self.device, self.dtype = weights.device, weights.dtype
        self.inputs = [[self._inputs(image, question) for question in questions] for _, image in images]
        self.dense = [[self._answer(given) for given in row] for row in self.inputs]

    def _inputs(self, image: Image.Image, question: str) -> Inputs:
        return placed(self.prompts.batch([Question(image, question)]), self.device, self.dtype)

    def _answer(self, inputs: Inputs) -> str:
        with torch.inference_mode():
            found = answers_of(self.model, self.host, inputs, self.tokens)
        return self.prompts.texts(found.tokens)[0].strip() or "(nothing)"

    def row(self, number: int, spec: str) -> Row:
        """The row of one image under the methods that the model has now."""
        maps: list[SiteMap] = []
        captions = []
        tokens: tuple[int, ...] = ()
        name, image = self.images[number]
        grid, dense = (1, 1), 0
        for place, question in enumerate(self.questions):
            inputs = self.inputs[number][place]
            with watching() as calls:
                answer = self._answer(inputs)
            if not calls:
                raise TokensieveError(
                    f"{spec} acts in the tower, and --question shows what stays for the decoder: give a method that "
                    "acts around it, such as divprune:keep=0.25"
                )
            call = calls[0]
            dense = int(call.visual[0].sum())
            grid = _grid(inputs, self.host.core.config, dense)
            ahead = f"{place + 1}: " if len(self.questions) > 1 else ""
            maps += _sites(call, grid, spec, ahead, question)
            captions.append(f"{ahead}“{question}” · dense: {self.dense[number][place]} · reduced: {answer}")
            tokens = tokens or _by_layer(call, self.depth)
        return Row(
            method=spec,
            image=name,
            picture=seen(self.inputs[number][0], image, self.prompts.processor),
            maps=tuple(maps),
            grid=grid,
            tokens=tokens,
            dense=dense,
            caption="\n".join(captions),
            counted="image tokens",
            unit="layer",
        )


def _grid(inputs: Mapping[str, Any], config: Any, features: int) -> tuple[int, int]:
    """(rows, columns) along which the tokens of the one image lie."""
    (grid,) = grids_of(inputs, config, (features,))
    if grid is None:
        raise RefusedError(
            f"the {features} tokens of the image lie on no grid that is known (tiles, newlines between rows, or "
            "queries): show draws those of one picture"
        )
    return plane_of(grid, "show")


def _sites(call: KeptTokens, grid: tuple[int, int], spec: str, ahead: str, question: str) -> list[SiteMap]:
    """What stays in front of the decoder, where less than all does, and behind each site in it."""
    places = call.visual[0].nonzero().squeeze(1)
    changed = call.changed[0][places].cpu().numpy()
    before, sites = len(places), []
    for first, stays in call.stages:
        stay = stays[0][places].cpu().numpy()
        after = int(stay.sum())
        if not first and after == before and len(call.stages) > 1:
            continue
        state = np.where(stay, np.where(changed, State.MERGED, State.ATTENDS), State.PRUNED).astype(np.uint8)
        holding = int((stay & changed).sum())
        merged = f", {holding} of them with others merged in" if holding else ""
        sites.append(
            SiteMap(
                block=first,
                point="before",
                method=spec,
                before=before,
                after=after,
                state=state.reshape(grid),
                group=np.arange(len(places)).reshape(grid),
                title=ahead + (f"behind layer {first}" if first else "in front of the decoder"),
                note=f"“{question}”: {after} of {len(places)} stay{merged}",
            )
        )
        before = after
    return sites


def _by_layer(call: KeptTokens, depth: int) -> tuple[int, ...]:
    """Image tokens that each layer of the decoder sees."""
    counts = call.image_tokens
    return tuple(counts[max(first for first in counts if first <= layer)] for layer in range(depth))


def seen(inputs: Mapping[str, Any], image: Image.Image, processor: Any) -> NDArray[np.uint8]:
    """(height, width, 3): what the model sees of an image; of packed patches the whole of it."""
    pixels = inputs.get("pixel_values")
    prepared = processor.image_processor
    mean, std = getattr(prepared, "image_mean", None), getattr(prepared, "image_std", None)
    if pixels is None or pixels.dim() != 4 or not getattr(prepared, "do_normalize", False) or mean is None:
        return np.asarray(image, dtype=np.uint8)
    shape = (3, 1, 1)
    plain = pixels[0].float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    colours: NDArray[np.uint8] = (255 * plain).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return colours
