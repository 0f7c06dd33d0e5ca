"""Every prefix method in a model: on a host with a class token, on one with grids of its own, and on a video."""

from __future__ import annotations

import pytest
import torch

import tokensieve as ts
from tests.helpers.generating import answers
from tests.helpers.hidden import kept
from tests.helpers.languages import Row, named
from tokensieve.errors import RefusedError
from tokensieve.methods._registry import list_language_methods
from tokensieve.methods.language._prefix import PrefixMethod

pytest.importorskip("transformers")

PREFIX = [name for name, cls in list_language_methods().items() if issubclass(cls, PrefixMethod)]
OF_VIDEO = {"evs", "vidcom2"}

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("name", PREFIX)
@pytest.mark.parametrize("host", ["llava", "qwen2.5-vl"])
def test_every_method_runs_in_generate_or_says_what_it_lacks(name: str, host: str) -> None:
    (language,) = named([host])
    model, inputs = ts.apply(language.build(), f"{name}:tokens=6"), language.inputs(Row(1), Row(2, words=7, seed=1))
    if name in OF_VIDEO:
        with pytest.raises(RefusedError, match="needs its grid"):
            model(**inputs)
        return
    answer, steps = answers(model, inputs, 4)
    assert steps.isfinite().all() and torch.equal(
        answer.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"]
    )
    held = kept(answer.cache)[:, : inputs["input_ids"].shape[1]]
    gone = (~held).sum(dim=1).tolist()
    most = [language.features - 6, 2 * (language.features - 6)]
    ragged = getattr(list_language_methods()[name], "ragged", False)
    assert all(left >= least for left, least in zip(gone, most, strict=True)) if ragged else gone == most


def test_grids_of_images_and_videos_are_known() -> None:
    from tokensieve.language.grids import grids_of

    class Vision:
        spatial_merge_size = 2

    class Config:
        vision_config = Vision()

    sizes = torch.tensor([[1, 8, 4], [3, 4, 4]])
    assert grids_of({"image_grid_thw": sizes}, Config(), [8, 12]) == ((4, 2), (3, 2, 2))
    assert grids_of({"image_grid_thw": sizes}, Config(), [8, 11]) == ((4, 2), None)
    assert grids_of({"pixel_values": torch.zeros(2, 3, 8, 8)}, Config(), [16, 16]) == ((4, 4), (4, 4))
    assert grids_of({"pixel_values": torch.zeros(2, 3, 8, 8)}, Config(), [17, 16]) == (None, (4, 4))
    assert grids_of({"pixel_values": torch.zeros(2, 3, 8, 4)}, Config(), [16, 16]) == (None, None)
