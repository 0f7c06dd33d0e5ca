"""One side of ``benchmarks rival``: loads a folder, and makes one call of one new token for each line on its input.

python rival_process.py FOLDER DTYPE THREADS VARIANT

VARIANT is "keep_n_vis=…" of ``sparsevlm_generate``; "pruning_ratio=…" of OpenVINO GenAI, for which FOLDER holds an
exported model; "dense"; or a spec of tokensieve. Runs in environments without tokensieve too, so it imports no more
than it needs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = (36, 64)  # patches of 14 pixels, four of which are an image token
WORDS = 32
Call = Callable[[], list[int]]


def inputs(config: Any, dtype: Any) -> dict[str, Any]:
    """One image of 36 × 64 patches and 32 words, the same every time."""
    import torch
    import transformers

    torch.manual_seed(1)
    rows, columns = SIDES
    image = [config.image_token_id] * (rows * columns // 4)
    ids = torch.tensor([[config.vision_start_token_id, *image, config.vision_end_token_id, *range(10, 10 + WORDS)]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(rows * columns, 3 * 2 * 14 * 14).to(dtype),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        given["mm_token_type_ids"] = (ids == config.image_token_id).int()
    return given


def of_torch(folder: str, dtype: str, threads: int, variant: str) -> tuple[Call, str]:
    """A function that makes a call and gives the image tokens in the cache of each layer, and what it runs on."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    _, _, rival = variant.partition("keep_n_vis=")
    kind: Any = transformers.Qwen2_5_VLForConditionalGeneration
    attention = "eager" if rival else "sdpa"
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    given = inputs(model.config, getattr(torch, dtype))
    tokens = int((given["input_ids"] == model.config.image_token_id).sum())
    others = given["input_ids"].shape[1] - tokens
    if rival:
        caches = _sparsevlm(model, given, tokens, int(rival))
    else:
        if variant != "dense":
            import tokensieve

            tokensieve.apply(model, variant)
        caches = _generate(model, given)

    def call() -> list[int]:
        with torch.no_grad():
            return [layer.keys.shape[2] - others for layer in caches().layers]

    return call, f"torch {torch.__version__}, transformers {transformers.__version__}"


def _generate(model: Any, given: dict[str, Any]) -> Callable[[], Any]:
    arguments = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    return lambda: model.generate(**given, **arguments).cache


def _sparsevlm(model: Any, given: dict[str, Any], tokens: int, keep: int) -> Callable[[], Any]:
    from sparsevlm import sparsevlm_generate

    seen: list[Any] = []
    generate = model.generate

    def noting(**arguments: Any) -> Any:
        seen[:] = [arguments["past_key_values"]]
        return generate(**arguments)

    model.generate = noting  # its cache, to see that it pruned

    def call() -> Any:
        sparsevlm_generate(model, None, given, tokens, keep, max_new_tokens=1, device="cpu")
        return seen[0]

    return call


def of_openvino(folder: str, threads: int, ratio: int) -> tuple[Call, str]:
    """The same of OpenVINO GenAI, whose count is of all tokens in front of the decoder less those of words."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.VLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.pruning_ratio = 1, ratio
    pixels = numpy.random.default_rng(1).integers(0, 255, (14 * SIDES[0], 14 * SIDES[1], 3), dtype=numpy.uint8)
    picture, words = openvino.Tensor(pixels), "a" * (WORDS - 20)  # the rest are of the chat template
    alone = pipeline.generate(words, generation_config=config).perf_metrics.get_num_input_tokens() + 2

    def call() -> list[int]:
        answer = pipeline.generate(words, images=[picture], generation_config=config)
        return [answer.perf_metrics.get_num_input_tokens() - alone]

    return call, f"openvino-genai {openvino_genai.__version__}"


def peak() -> int:
    """Bytes of the highest resident memory since it was last forgotten."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def forget() -> int:
    """Begin anew with the peak of resident memory; bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def main() -> None:
    """Answer each line with one of JSON."""
    folder, dtype, threads, variant = sys.argv[1:]
    _, _, ratio = variant.partition("pruning_ratio=")
    if ratio:
        call, about = of_openvino(folder, int(threads), int(ratio))
    else:
        call, about = of_torch(folder, dtype, int(threads), variant)
    print(json.dumps({"about": about}), flush=True)
    for _ in sys.stdin:
        before = forget()
        start = time.perf_counter()
        held = call()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak": peak() - before, "held": held}), flush=True)


if __name__ == "__main__":
    main()
