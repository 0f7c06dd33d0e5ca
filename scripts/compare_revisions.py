"""Whether this checkout answers bit for bit as another revision does, through public calls alone.

    python scripts/compare_revisions.py [REVISION]        default: the last one before the rooms, bb8b5d8

A worktree of the revision is made in a temporary folder and its CPU kernels are built where there is a compiler. Both
sides then run the same program, this file, in processes of their own: methods on models of four families, with the same
random weights and images; evaluating and training, in float32 and bfloat16. Answers, features, gradients and token
counts must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
BEFORE_ROOMS = "bb8b5d8"
# Not algm, dtem, evo-vit, mctf and tokenlearner: they follow their authors' code since, and answer otherwise.
SPECS = (
    "bat:keep=0.7",
    "tosa:keep=0.5",
    "tome:r=4",
    "evit:keep=0.7",
    "atc:keep=0.7",
    "ppt:r=4",
    "pitome:keep=0.8",
    "dynamicvit:keep=0.7",
    "expedite:keep=0.5",
    "a-vit:scale=2.0:shift=-1.0",
    "dpc-knn:keep=0.7",
    "k-medoids:keep=0.7",
    "psvit",
    "cropr:r=3",
    "ailurus",
    "tome:r=2+tosa:keep=0.5",
)
TRAINED = ("bat:keep=0.7", "tome:r=4", "dynamicvit:keep=0.7", "a-vit:scale=2.0:shift=-1.0", "tome:r=2+tosa:keep=0.5")


def timm_vit() -> nn.Module:
    import timm

    size = {"embed_dim": 96, "depth": 6, "num_heads": 3, "img_size": 96, "num_classes": 10}
    return timm.create_model("deit_tiny_patch16_224", **size)


def timm_eva() -> nn.Module:
    import timm

    size = {"embed_dim": 96, "depth": 6, "num_heads": 3, "img_size": 96, "num_classes": 10, "patch_size": 16}
    return timm.create_model("eva02_tiny_patch14_224", **size)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 192}
    return ViTForImageClassification(ViTConfig(image_size=96, patch_size=16, **size))


def hf_dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    size = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "mlp_ratio": 2}
    return Dinov2ForImageClassification(Dinov2Config(image_size=96, patch_size=16, **size))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm-vit": timm_vit,
    "timm-eva": timm_eva,
    "hf-vit": hf_vit,
    "hf-dinov2": hf_dinov2,
}


def answer_of(output: object) -> Tensor:
    """The tensor in what a model gives back."""
    return output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined, no-any-return]


def answers(family: str, spec: str) -> Iterator[tuple[str, Tensor]]:
    """Everything that is compared for one method on one model, by name."""
    import tokensieve as ts

    def reduced() -> nn.Module:
        torch.manual_seed(0)
        model = MODELS[family]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        torch.manual_seed(1)
        return ts.apply(model, spec)

    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    model = reduced()
    with torch.no_grad():
        yield "float32", answer_of(model(images))
        if hasattr(model, "forward_features"):
            yield "features", model.forward_features(images)
        trace = ts.trace(model, images)
        yield "counts", torch.tensor([(stage.attended, stage.processed) for stage in trace.stages])
        for number, event in enumerate(trace.events):
            if event.group is not None:
                yield f"group{number}", event.group
        yield "bfloat16", answer_of(model.bfloat16()(images.bfloat16()))
        yield "removed", answer_of(ts.remove(model)(images.bfloat16()))
    if spec in TRAINED:
        model = reduced().train()
        torch.manual_seed(3)
        answer = answer_of(model(images))
        answer.square().sum().backward()
        yield "training", answer.detach()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and ("blocks.4" in name or "layer.4" in name or "layers.4" in name):
                yield f"gradient {name}", parameter.grad


def write(path: str) -> None:
    """Write all answers of the tokensieve that Python imports to a safetensors file."""
    warnings.simplefilter("ignore")
    found: dict[str, Tensor] = {}
    for family in MODELS:
        for spec in SPECS:
            try:
                for name, value in answers(family, spec):
                    found[f"{family} {spec} {name}"] = value.detach().clone().contiguous()
            except ValueError as error:  # a refusal, which must be the same one
                found[f"{family} {spec} refused"] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    save_file(found, path)


def run(source: Path, output: Path) -> None:
    """Let a process with the package in ``source`` write its answers."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, __file__, "--write", str(output)], env=environment, check=True, cwd=output.parent)


def build_kernels(source: Path) -> None:
    """Build the CPU kernels of another revision; plain torch runs where that fails, which gives other last bits."""
    room = "cpu" if (source / "src" / "tokensieve" / "ops" / "cpu").is_dir() else "native"
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    subprocess.run([sys.executable, "-m", f"tokensieve.ops.{room}"], env=environment, check=False)


def differences(here: dict[str, Tensor], there: dict[str, Tensor]) -> list[str]:
    """The names under which two sets of answers differ in any bit."""
    names = sorted(set(here) | set(there))
    return [n for n in names if n not in here or n not in there or not _same(here[n], there[n])]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if one.numel() else True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default=BEFORE_ROOMS, help="what git knows it by")
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.write)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        worktree = Path(folder) / "worktree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(worktree), given.revision], check=True)
        try:
            for source in (ROOT, worktree):
                build_kernels(source)
            run(ROOT, Path(folder) / "here.safetensors")
            run(worktree, Path(folder) / "there.safetensors")
        finally:
            subprocess.run([*git, "remove", "--force", str(worktree)], check=False)
        here, there = (load_file(Path(folder) / f"{side}.safetensors") for side in ("here", "there"))
    differ = differences(here, there)
    print(f"{len(here)} tensors of {len(SPECS)} methods on {len(MODELS)} families: {len(differ)} differ")
    print("\n".join(differ))
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
