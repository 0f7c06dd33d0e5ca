"""Named sets of cells, sized for where they run."""

from __future__ import annotations

from benchmarks.cells import ENGINES, Cell, grid

# About the same MACs saved by each but ToSA, which can save at most half of every second block.
METHODS = ("bat", "tome:r=13", "evit:keep=0.6", "tosa:keep=0.5")

# 4097 tokens to 1025 at the published first site: one site for BAT and EViT (whose fused token is one of the 1024 patch
# tokens left), two for ToMe, which removes at most half, and every second block for ToSA.
TO_1025 = (
    "bat:keep=0.25:sites=[3]",
    "tome:r=[2048,1024]:sites=[2,3]",
    "evit:keep=0.24975:sites=[3]",
    "tosa:keep=0.25",
)

# The same in the first block: only so can the peak of the memory be lower, which else is that of the blocks before.
AT_ONCE = (
    "bat:keep=0.25:sites=[0]",
    "tome:r=[2048,1024]:sites=[0,1]",
    "evit:keep=0.24975:sites=[0]",
)

SELECTOR = ("tosa", "tosa:stride=1")


def smoke() -> list[Cell]:
    """A few small cells of every kind: two minutes on two cores."""
    cells = grid(["deit_tiny"], [224], [1, 16], ["fp32"], ["eager"], METHODS, rounds=6)
    cells += grid(["deit_tiny"], [224], [16], ["fp32"], ["eager"], METHODS, kind="operator", rounds=10)
    cells += grid(["deit_tiny"], [224, 384], [4], ["fp32"], ["eager"], SELECTOR, kind="selector", rounds=10)
    return cells


def cpu() -> list[Cell]:
    """What the goals ask of a CPU, bfloat16 first and the most telling of it again in float32."""
    cells = grid(["deit_tiny", "deit_small"], [224], [1], ["bf16"], ["eager"], METHODS, rounds=24)
    cells += grid(["deit_tiny", "deit_small"], [224], [16], ["bf16"], ["eager"], METHODS, rounds=12)
    cells += grid(["deit_tiny", "deit_small"], [224], [64], ["bf16"], ["eager"], METHODS, rounds=8, warmup=2)
    cells += grid(["vit_base"], [224], [16], ["bf16"], ["eager"], METHODS, rounds=8, warmup=2)
    cells += operators("bf16", batch=16, rounds=60)
    cells += selectors("bf16")
    cells += highres_on("bf16")
    cells += grid(["deit_tiny", "deit_small"], [224], [1], ["fp32"], ["eager"], METHODS, rounds=16)
    cells += grid(["deit_small"], [224], [16], ["fp32"], ["eager"], METHODS, rounds=8, warmup=2)
    return cells


def compiled() -> list[Cell]:
    """What is left to gain or lose when everything is compiled; minutes of compiling on a CPU."""
    return grid(["deit_tiny", "deit_small"], [224], [1, 16], ["bf16"], ["compile"], METHODS, rounds=12)


def highres() -> list[Cell]:
    """ViT-B at 1024² pixels, from 4097 tokens to 1025."""
    return highres_on("bf16")


def gpu() -> list[Cell]:
    """What the goals ask of a CUDA device."""

    def everywhere(models: list[str], size: int, batches: list[int], methods: tuple[str, ...]) -> list[Cell]:
        return grid(models, [size], batches, ["bf16"], ENGINES, methods, rounds=16)

    cells = everywhere(["deit_tiny", "deit_small", "vit_base"], 224, [1, 16, 64, 256], METHODS)
    cells += everywhere(["vit_large"], 224, [1, 64, 256], METHODS)
    cells += everywhere(["vit_base", "vit_large"], 384, [1, 64], METHODS)
    cells += everywhere(["vit_base"], 1024, [1, 16], TO_1025)
    cells += grid(["deit_small", "vit_base"], [224], [64], ["fp32"], ["eager"], METHODS, rounds=12)
    cells += operators("bf16", batch=64, rounds=30)
    cells += selectors("bf16")
    return cells


def operators(dtype: str, batch: int, rounds: int) -> list[Cell]:
    """What the methods cost next to a dense block."""
    cells = grid(
        ["deit_small", "vit_base"], [224], [batch], [dtype], ["eager"], METHODS, kind="operator", rounds=rounds
    )
    return cells + grid(["vit_base"], [1024], [1], [dtype], ["eager"], TO_1025, kind="operator", rounds=5, warmup=1)


def selectors(dtype: str) -> list[Cell]:
    """ToSA's selector at 197, 577 and 4097 tokens."""
    cells = grid(["deit_small", "vit_base"], [224, 384], [4], [dtype], ["eager"], SELECTOR, kind="selector", rounds=20)
    return cells + grid(
        ["vit_base"], [1024], [1], [dtype], ["eager"], SELECTOR[:1], kind="selector", rounds=6, warmup=1
    )


def highres_on(dtype: str) -> list[Cell]:
    """ViT-B at 1024² pixels and batch 1."""
    return grid(["vit_base"], [1024], [1], [dtype], ["eager"], (*TO_1025, *AT_ONCE), rounds=6, warmup=1)


PRESETS = {preset.__name__: preset for preset in (smoke, cpu, compiled, highres, gpu)}
