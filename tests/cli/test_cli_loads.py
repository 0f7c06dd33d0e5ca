"""Nobody waits to be told something: which packages a call of the command line has loaded when it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = (
    "torch", "timm", "torchvision", "torchmetrics", "scipy", "matplotlib", "huggingface_hub", "transformers",
    "accelerate", "pydantic", "sklearn",
)  # fmt: skip
COMPILER = "torch._dynamo"
BEYOND_TIMM = ("torchmetrics", "scipy", "matplotlib", "transformers", "accelerate")
CALL = """
import sys
sys.argv = ["tokensieve", *sys.argv[1:]]
from tokensieve.cli.app import main
try:
    main()
finally:
    print("loaded:", *sys.modules, file=sys.stderr)
"""


def called(*arguments: object) -> tuple[int, str, set[str]]:
    """Exit code, what was said, and the modules that were loaded at the end."""
    command = [sys.executable, "-c", CALL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    said, _, loaded = done.stderr.rpartition("loaded:")
    return done.returncode, " ".join((done.stdout + said).split()), set(loaded.split())


def among(names: tuple[str, ...], loaded: set[str]) -> list[str]:
    """Those of ``names`` that were loaded."""
    return [name for name in names if name in loaded]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--version",), 0, "tokensieve "),
        (("--help",), 0, "Measure dense model, reduced variants and their oracles"),
        (("bench", "--help"), 0, "--speed-batch-size"),
        (("train", "--help"), 0, "Changes to the recipe"),
        (("export", "--help"), 0, "aotinductor"),
        (("show", "--help"), 0, "IMAGE"),
        (("benhc",), 2, "No such command 'benhc'. Did you mean 'bench'?"),
        (("bench", "--batchsize", 3), 2, "No such option: --batchsize"),
    ],
)
def test_help_and_what_is_mistyped_need_not_even_torch(arguments: tuple[object, ...], code: int, said: str) -> None:
    ended, text, loaded = called(*arguments)
    assert ended == code, text
    assert said in text
    assert "tokensieve.cli.app" in loaded
    assert among(PACKAGES, loaded) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("methods",), 0, "tome"),
        pytest.param(("methods", "tome"), 0, "Options", marks=pytest.mark.slow),
        (("bench", "test_vit", "-m", "tom:r=3"), 2, "did you mean 'tome'"),
        pytest.param(
            ("train", "test_vit", "-o", "run", "--stage", "finetune", "-m", "tome:kep=3"),
            2,
            "tome has no option 'kep'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_methods_and_specs_need_torch_alone(arguments: tuple[object, ...], code: int, said: str) -> None:
    ended, text, loaded = called(*arguments)
    assert ended == code, text
    assert said in text
    assert "torch" in loaded and COMPILER not in loaded
    assert among(("timm", "torchvision", "huggingface_hub", *BEYOND_TIMM), loaded) == []


@pytest.mark.slow
def test_a_mistyped_model_needs_timm_and_nothing_beyond() -> None:
    ended, text, loaded = called("eval", "test_vitt", "--data", ".", "-m", "tome:r=2")
    assert ended == 2, text
    assert "did you mean 'test_vit'" in text
    assert "timm" in loaded
    assert among(BEYOND_TIMM, loaded) == []


def test_a_bench_reads_its_first_image_before_it_loads_what_judges_and_draws(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "broken.png").write_bytes(b"no picture")
    options = ("--num-classes", 1, "-j", 0, "--results-file", tmp_path / "rows.json")
    ended, text, loaded = called("bench", "test_vit", "--data", tmp_path, *options, "-m", "tome:r=2")
    assert ended == 2, text
    assert "can be read" in text
    assert "PIL.Image" in loaded
    assert among(BEYOND_TIMM, loaded) == []


def test_families_are_listed_without_timm() -> None:
    code = "import sys, tokensieve as ts; assert 'timm-vit' in ts.list_families(); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "False"
