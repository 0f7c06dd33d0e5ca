"""Time to the first token and memory beside ``sparsevlm`` 0.1.3, each in a process and environment of its own.

python -m benchmarks rival --python ENVIRONMENT/bin/python [--keep 144] [--rounds 5] [--dtype float32]
    [--genai-python ENVIRONMENT/bin/python --genai-model FOLDER]
python -m benchmarks rival --save FOLDER     the model that both run, with a tokenizer, for optimum-cli to export

The environment has ``sparsevlm==0.1.3`` and a transformers that it runs with (5.5.4 was tried). Both processes load the
same folder of random weights: Qwen2.5-VL's shape with eight blocks in the tower, two of which attend to everything, and
Qwen2.5-0.5B's decoder. The prompt is one image of 504 × 896 pixels, 576 image tokens, and 32 words. ``sparsevlm`` runs
its ``sparsevlm_generate`` on the eager attention that it asks for, ours is ``generate`` with ``sparsevlm``
behind the layer that it reads, both for one new token. The processes take turns; memory is the peak of each
process's resident memory in a call beyond what it had before.

OpenVINO GenAI's CDPruner runs in a third environment, with ``openvino-genai`` and a model that ``optimum-cli export
openvino --task image-text-to-text --weight-format fp32`` wrote; its share is a whole per cent of the tokens to remove.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import table
from tokensieve.errors import TokensieveError
from tokensieve.utils.files import replacing

HERE = Path(__file__).parent
TOKENS = 576
OURS = ("sparsevlm:keep={share}:sites=[3]:recycle=0", "divprune:tokens={keep}")
COLUMNS = ("process", "variant", "image tokens in the cache", "seconds", "theirs / ours", "peak MB of a call")


def options(parser: argparse.ArgumentParser) -> None:
    """The other environment, and how often."""
    parser.add_argument("--python", type=Path, help="of an environment with sparsevlm 0.1.3")
    parser.add_argument("--genai-python", type=Path, help="of an environment with openvino-genai")
    parser.add_argument("--genai-model", type=Path, help="the model, exported to OpenVINO")
    parser.add_argument("--save", type=Path, help="write the model and measure nothing")
    parser.add_argument("--keep", type=int, default=144, help=f"image tokens that stay, of {TOKENS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rival.md"))


def run(given: argparse.Namespace) -> None:
    """Write the table."""
    if given.save is not None:
        _save(given.save)
        return
    if given.python is None or (given.genai_python is None) != (given.genai_model is None):
        raise TokensieveError("give --python, and --genai-python together with --genai-model or neither")
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder))
        jobs = _jobs(given, folder)
        processes = [_Process(job, given.dtype) for job in jobs]
        answers: list[list[dict[str, Any]]] = [[] for _ in jobs]
        for number in range(-1, given.rounds):
            for place in [(number + step) % len(jobs) for step in range(len(jobs))]:
                answer = processes[place].ask()
                if number >= 0:  # one round is for warming up
                    answers[place].append(answer)
        versions = {job.name: process.close() for job, process in zip(jobs, processes, strict=True)}
    rows = [_row(job, answer, answers[0]) for job, answer in zip(jobs, answers, strict=True)]
    found = "\n".join(table(COLUMNS, rows))
    ran = "; ".join(f"{name}: {version}" for name, version in versions.items())
    about = (
        f"{given.dtype}, batch 1, {torch.get_num_threads()} threads, {given.rounds} rounds in turn. {ran}. "
        f"`python -m benchmarks rival --python … --keep {given.keep}`"
    )
    with replacing(given.output) as beside:
        beside.write_text(f"# Beside other libraries\n\n{about}\n\n{found}\n", encoding="utf-8")
    print(found)


@dataclass(frozen=True)
class _Job:
    """One process: whose it is, the Python that runs it, the folder that it loads, and what it runs."""

    name: str
    python: Path
    folder: str
    variant: str


def _jobs(given: argparse.Namespace, folder: str) -> list[_Job]:
    share = f"{given.keep / TOKENS:.6f}"
    specs = ["dense", *(spec.format(share=share, keep=given.keep) for spec in OURS)]
    jobs = [_Job("sparsevlm 0.1.3", given.python, folder, f"keep_n_vis={given.keep}")]
    jobs += [_Job("tokensieve", Path(sys.executable), folder, spec) for spec in specs]
    if given.genai_python is not None:
        removed = round(100 * (1 - given.keep / TOKENS))
        ratios = [f"pruning_ratio={ratio}" for ratio in (0, removed)]
        model = str(given.genai_model)
        jobs += [_Job("OpenVINO GenAI", given.genai_python, model, ratio) for ratio in ratios]
    return jobs


def _row(job: _Job, own: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[str]:
    gain = median(other["seconds"] / answer["seconds"] for answer, other in zip(own, theirs, strict=True))
    return [
        job.name,
        f"`{job.variant}`",
        "–".join(map(str, sorted(set(own[0]["held"])))),
        f"{median(answer['seconds'] for answer in own):.2f}",
        f"{gain:.2f}",
        f"{max(answer['peak'] for answer in own) / 2**20:.0f}",
    ]


class _Process:
    """A model in a process of its own, which makes one call for each line it is sent."""

    def __init__(self, job: _Job, dtype: str) -> None:
        script = str(HERE / "rival_process.py")  # -P: modules beside it have names of the standard library
        command = [str(job.python), "-P", script, job.folder, dtype, str(torch.get_num_threads()), job.variant]
        self.running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()["about"]

    def ask(self) -> dict[str, Any]:
        """Seconds, bytes at the peak, and tokens held in each layer's cache, of one call."""
        assert self.running.stdin is not None
        print("go", file=self.running.stdin, flush=True)
        return self._answer()

    def close(self) -> str:
        """End the process; what it ran on."""
        self.running.communicate()
        return str(self.about)

    def _answer(self) -> dict[str, Any]:
        assert self.running.stdout is not None
        for line in self.running.stdout:
            if line.startswith("{"):  # others are what libraries print
                return dict(json.loads(line))
        raise RuntimeError(f"{' '.join(map(str, self.running.args))} ended without an answer")  # type: ignore[arg-type]


SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _save(folder: Path) -> None:
    """Random weights of Qwen2.5-VL's shape as save_pretrained writes them, with a tokenizer of single bytes."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _tokenizer()
    start, end, vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    vision = {
        "depth": 8,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 896,
        "fullatt_block_indexes": [3, 7],
    }
    text = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
        "bos_token_id": start,
        "eos_token_id": end,
    }
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=bytes_alone, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    pictures, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    make: Any = Qwen2_5_VLProcessor
    return make(pictures, tokenizer, videos, chat_template=TEMPLATE)
