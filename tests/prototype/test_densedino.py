"""DenseDINO: views that share their points, tokens that nobody reads, a teacher that follows, a plain ViT."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.prototype.densedino import DenseDINO, agreement, read_points, reference_tokens
from tokensieve.train.options import TrainOptions
from tokensieve.train.recipe import Recipe, load_recipe
from tokensieve.train.run import train
from tokensieve.train.stages import build
from tokensieve.train.views import draw_views

Arguments = Callable[..., TrainOptions]
RECIPE = dataclasses.replace(load_recipe("densedino"), points=3, prototypes=8, drop_path=0.0)


def tiny(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    """Four by four patches and two blocks, with weights that matter."""
    torch.manual_seed(0)
    sizes = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.create_model(name, **{**sizes, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def objective(model: nn.Module | None = None, recipe: Recipe = RECIPE) -> DenseDINO:
    found = build("pretrain", tiny() if model is None else model, recipe).objective
    assert isinstance(found, DenseDINO)
    return found


def test_the_points_of_both_views_are_those_of_the_image() -> None:
    """On an image whose channels are its own coordinates, both views show the same values at their points."""
    torch.manual_seed(0)
    line = (2 * torch.arange(256) + 1) / 256 - 1
    ramp = torch.stack([line.expand(256, 256), line.unsqueeze(1).expand(256, 256), torch.zeros(256, 256)])
    views = draw_views(ramp.expand(16, -1, -1, -1), 20, colours=False)
    places = []
    for images, points in zip(views.images, views.points, strict=True):
        assert images.shape == (16, 3, 256, 256) and points.shape == (16, 20, 2)
        assert bool((points.abs() <= 1 + 1e-5).all())
        places.append(
            F.grid_sample(images, points.unsqueeze(2), padding_mode="border", align_corners=False)[:, :2, :, 0]
        )
    torch.testing.assert_close(places[0], places[1], rtol=0, atol=0.02)
    assert len({round(float(value), 4) for value in places[0][:, 0, 0]}) > 10  # every image draws its own
    assert not torch.allclose(views.images[0], views.images[1])
    mirrored = views.images[0][:, 0, 0, 0] > views.images[0][:, 0, 0, -1]
    assert 0 < int(mirrored.sum()) < 16


def test_views_are_repeated_by_the_seed_and_have_colours_of_their_own() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(draw_views(pictures(), 3))
    assert torch.equal(drawn[0].images[1], drawn[1].images[1])
    assert torch.equal(drawn[0].points[0], drawn[1].points[0])
    torch.manual_seed(5)
    assert not torch.allclose(draw_views(pictures(), 3, colours=False).images[0], drawn[0].images[0])


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "no_embed_class": True}])
def test_reference_tokens_are_position_embeddings(options: dict[str, Any]) -> None:
    model = tiny(**options)
    centres = torch.tensor([[-0.75, -0.75], [0.25, -0.75], [0.75, 0.25]])  # patches 0, 2 and 11 of a row of four
    found = reference_tokens(model, centres.unsqueeze(0))
    own = model.pos_embed[:, -16:]
    torch.testing.assert_close(found, own[:, [0, 2, 11]])
    between = reference_tokens(model, torch.tensor([[[-0.5, -0.75]]]))
    torch.testing.assert_close(between[:, 0], (own[:, 0] + own[:, 1]) / 2)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "no_embed_class": True}])
def test_nobody_reads_reference_tokens(options: dict[str, Any]) -> None:
    """The class token is as without them, and each is as it would be alone."""
    model = tiny(**options)
    points = torch.rand(2, 5, 2) * 2 - 1
    with torch.no_grad():
        tokens = read_points(model, pictures(), points)
        alone = read_points(model, pictures(), points[:, 3:4])
        plain = model.forward_features(pictures())
    torch.testing.assert_close(tokens[:, 0], plain[:, 0])
    torch.testing.assert_close(tokens[:, 4], alone[:, 1])
    assert not torch.allclose(tokens[:, 1], tokens[:, 2])
    with torch.no_grad():  # they read the image
        other = read_points(model, pictures().flip(0), points)
    assert not torch.allclose(other[:, 1:], tokens[:, 1:])


def test_the_loss_is_the_formula() -> None:
    model = objective().double().eval()
    model.centre.copy_(torch.randn(2, 1, 8))
    images = pictures().double()
    torch.manual_seed(3)
    loss, figures = model(images, None, 0.0)
    torch.manual_seed(3)
    views = draw_views(images, 3)

    def answers(agreeing: Any) -> list[Tensor]:
        return [
            agreeing.head(read_points(agreeing.model, x, p)) for x, p in zip(views.images, views.points, strict=True)
        ]

    with torch.no_grad():
        said, taught = answers(model), answers(model.teacher)
    parts = []
    for place, rows in ((0, [0]), (1, [1, 2, 3])):
        total, terms = 0.0, 0
        for one, other in ((0, 1), (1, 0)):
            for image in range(2):
                for row in rows:
                    target = ((taught[other][image, row] - model.centre[place, 0]) / 0.04).softmax(0)
                    total -= float((target * (said[one][image, row] / 0.1).log_softmax(0)).sum())
                    terms += 1
        parts.append(total / terms)
    # The teacher's answers and the losses are of single precision.
    assert float(figures["class"]) == pytest.approx(parts[0], rel=1e-4)
    assert float(figures["points"]) == pytest.approx(parts[1], rel=1e-4)
    assert float(loss.detach()) == pytest.approx((parts[0] + parts[1]) / 2, rel=1e-4)


def test_agreement_is_least_where_student_and_teacher_say_the_same() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1]])
    same = agreement(teacher.log(), teacher, 1.0)
    assert float(same) == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)), rel=1e-5)
    assert float(agreement(torch.tensor([[0.1, 0.2, 0.7]]).log(), teacher, 1.0)) > float(same)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_everything_learns_but_the_classifier_and_the_teacher(name: str) -> None:
    model = objective(tiny(name)).train()
    loss, _ = model(pictures(), None, 0.5)
    loss.backward()
    for key, parameter in model.named_parameters():
        learns = not key.startswith(("teacher.", "model.head"))
        assert parameter.requires_grad == learns, key
        if learns:
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
            assert bool(parameter.grad.any()), key
    assert not model.teacher.training and model.model.training


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_teacher_follows(progress: float, momentum: float, passes: int) -> None:
    """By as much in one pass as in several of one update."""
    recipe = dataclasses.replace(RECIPE, teacher_momentum=0.9, grad_accum_steps=passes)
    model = objective(recipe=recipe).train()
    before = copy.deepcopy(model.teacher.state_dict())
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(1.0)
        for _ in range(passes):
            model(pictures(), None, progress)
    for name, value in model.teacher.state_dict().items():
        moved = 1 - momentum if name.startswith("model.") else 0.0
        torch.testing.assert_close(value, before[name] + moved, msg=name)
    assert bool(model.centre.any())


def test_a_run_ends_with_a_plain_vit(arguments: Arguments) -> None:
    asked = arguments(model="test_vit", stage="pretrain", method=None, recipe=None, num_classes=0, steps=4)
    assert train(asked) is not None
    weights = load_file(f"{asked.output}/model.safetensors")
    plain = timm.create_model("test_vit", img_size=64, num_classes=0)
    plain.load_state_dict(weights, strict=True)
    saved = ts.load(asked.output)
    assert not ts.is_applied(saved)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), saved.eval()(images))


def test_a_stopped_run_goes_on_as_if_it_had_not(arguments: Arguments, tmp_path: Any) -> None:
    """The teacher and its centre are part of a checkpoint."""
    options: dict[str, Any] = {"stage": "pretrain", "method": None, "recipe": None, "num_classes": 0, "steps": 4}
    whole = arguments(**options, output=str(tmp_path / "whole"))
    train(whole)

    class Stopped(Exception):
        pass

    def stop(told: Any) -> None:
        if told.step == 3:
            raise Stopped

    halved = arguments(**options, output=str(tmp_path / "halved"))
    with pytest.raises(Stopped):
        train(halved, on_step=stop)
    train(dataclasses.replace(halved, resume="auto"))
    first, second = (load_file(f"{run.output}/model.safetensors") for run in (whole, halved))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "tome:r=2"}, "pretrain trains the dense model: leave --method out"),
        ({"model": "vit_pe_core_tiny_patch16_384"}, "densedino trains a timm VisionTransformer .*, which Eva is not"),
        ({"model": "psvit_tiny"}, "densedino trains a timm VisionTransformer .*, which PSViT is not"),
        ({"model": "vit_base_patch16_siglip_224"}, "with a class token"),
    ],
)
def test_what_cannot_be_pretrained(arguments: Arguments, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ts.TokensieveError, match=sentence):
        train(arguments(**({"stage": "pretrain", "method": None, "recipe": None} | changes)))


def test_sharding_is_refused() -> None:
    with pytest.raises(ts.TokensieveError, match="launch without --use_fsdp"):
        objective().shards()
