"""DenseDINO (arXiv 2306.04654): pre-training without labels, in which two views agree as wholes and point by point.

A student learns to say of one view what its teacher, a moving average of itself, says of the other (DINO, arXiv
2104.14294): by the class token, and by reference tokens, which stand at the same points of both views. A reference
token starts as the position embedding of its point, interpolated from those of the patches; it reads the class token
and the patches, and no token reads it. So the model that is saved is the plain ViT, and answers as if they had not
been.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import VisionTransformer
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.train.objective import Objective
from tokensieve.train.recipe import Recipe
from tokensieve.train.views import Views, draw_views

HIDDEN, BOTTLENECK = 2048, 256  # of DINO's head
CENTRE_MOMENTUM = 0.9


class Head(nn.Module):
    """DINO's projection: an MLP, rows scaled to length one, and their cosines with the prototypes.

    Args:
        dim: channels of a token.
        prototypes: length of the answer.
    """

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, BOTTLENECK))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, prototypes), in [-1, 1]."""
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(self.prototypes, dim=-1))


class Agreeing(nn.Module):
    """A ViT with its head: what the student is, and its teacher."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        """(B, 1 + R, prototypes) for images (B, C, H, W) and R points of each (B, R, 2) in [-1, 1]."""
        out: Tensor = self.head(read_points(self.model, images, points))
        return out


def reference_tokens(model: nn.Module, points: Tensor) -> Tensor:
    """The position embeddings (B, R, C) at ``points`` (B, R, 2), (x, y) in [-1, 1], bilinear between patch centres."""
    vit: Any = model
    patches = vit.pos_embed[:, -vit.patch_embed.num_patches :]
    grid = patches.transpose(1, 2).unflatten(2, vit.patch_embed.grid_size).expand(points.shape[0], -1, -1, -1)
    found = F.grid_sample(grid.float(), points.unsqueeze(2).float(), padding_mode="border", align_corners=False)
    return found.squeeze(3).transpose(1, 2).to(patches.dtype)


def read_points(model: nn.Module, images: Tensor, points: Tensor) -> Tensor:
    """The class token and the reference tokens (B, 1 + R, C) behind the last norm of a timm ViT."""
    vit: Any = model
    count = points.shape[1]
    references = reference_tokens(model, points)

    def append(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.cat([args[0], references.to(args[0].dtype)], dim=1)
        return (x, *args[1:]), kwargs

    length = vit.num_prefix_tokens + vit.patch_embed.num_patches + count
    # One row for all queries: every token reads the class token and the patches, none reads a reference token.
    seen = torch.arange(length, device=images.device).view(1, 1, 1, length) < length - count
    handle = vit.blocks[0].register_forward_pre_hook(append, with_kwargs=True)
    try:
        tokens: Tensor = vit.forward_features(images, attn_mask=seen)
    finally:
        handle.remove()
    return torch.cat([tokens[:, :1], tokens[:, -count:]], dim=1)


def agreement(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's answers (…, K) at ``temperature`` under the teacher's distributions (…, K)."""
    return -(teacher * (student.float() / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()


class DenseDINO(Objective):
    """A student and its teacher on two views of every image.

    Args:
        model: a timm ViT that ``check_model`` lets pass; only its blocks' side is trained, since
            no label asks its classifier anything.
        recipe: ``points``, ``dense``, ``prototypes``, ``temperature``, ``teacher_temperature``, ``teacher_momentum``,
            and ``grad_accum_steps``, over which the teacher moves as it would in one.
    """

    centre: Tensor

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        vit: Any = model
        self.model = model
        classifier = vit.get_classifier()
        for part in classifier if isinstance(classifier, tuple) else (classifier,):  # two of a distilled model
            part.requires_grad_(False)
        self.head = Head(vit.embed_dim, recipe.prototypes)
        # A submodule, so that a run that is resumed goes on with the same teacher.
        self.teacher = Agreeing(copy.deepcopy(model), copy.deepcopy(self.head)).requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(2, 1, recipe.prototypes))  # of class tokens and of reference tokens
        self._recipe = recipe

    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        if self.training:
            self._follow(progress)
        views = draw_views(images, recipe.points)
        student = self._student()
        said = [student(pixels, points) for pixels, points in zip(views.images, views.points, strict=True)]
        taught, mean = self._teach(views)
        losses = []
        for tokens in (slice(0, 1), slice(1, None)):
            pairs = [(said[0], taught[1]), (said[1], taught[0])]
            parts = [agreement(s[:, tokens], t[:, tokens], recipe.temperature) for s, t in pairs]
            losses.append(torch.stack(parts).mean())
        if self.training:
            self.centre.lerp_(mean, 1 - CENTRE_MOMENTUM)
        whole, points = losses
        loss = (1 - recipe.dense) * whole + recipe.dense * points
        return loss, {"class": whole.detach(), "points": points.detach()}

    def _student(self) -> Agreeing:
        return Agreeing(self.model, self.head)

    @torch.no_grad()
    def _teach(self, views: Views) -> tuple[list[Tensor], Tensor]:
        """The teacher's distributions (B, 1 + R, K) of both views, and the means (2, 1, K) of its answers."""
        answers = [
            self.teacher(pixels, points).float() for pixels, points in zip(views.images, views.points, strict=True)
        ]
        both = torch.cat(answers)
        mean = torch.stack([both[:, :1].mean(dim=(0, 1)), both[:, 1:].mean(dim=(0, 1))]).unsqueeze(1)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        centre = torch.cat([self.centre[0], self.centre[1].expand(both.shape[1] - 1, -1)])
        return [((one - centre) / self._recipe.teacher_temperature).softmax(dim=-1) for one in answers], mean

    @torch.no_grad()
    def _follow(self, progress: float) -> None:
        """Move the teacher towards the student, by less and less."""
        recipe = self._recipe
        momentum = 1 - (1 - recipe.teacher_momentum) * (math.cos(math.pi * progress) + 1) / 2
        step = 1 - momentum ** (1 / recipe.grad_accum_steps)
        own = self._student().state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(own[name], step)
            else:
                value.copy_(own[name])

    def train(self, mode: bool = True) -> DenseDINO:
        """The student's mode; the teacher's is always that of evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def shards(self) -> list[nn.Module]:
        raise TokensieveError(
            "the teacher of densedino follows whole weights and these are sharded: launch without --use_fsdp"
        )


def check_model(model: nn.Module) -> None:
    """Refuse what ``read_points`` cannot run."""
    if not isinstance(model, VisionTransformer) or getattr(model, "cls_token", None) is None or model.pos_embed is None:
        raise TokensieveError(
            f"densedino trains a timm VisionTransformer with a class token and position embeddings, which "
            f"{type(model).__name__} is not: give deit_small_patch16_224 or another like it"
        )
