"""Exported models beside the model they were made from: the same classes and the same tokens on real images, and speed.

Two steps, so that the second can have the machine to itself:

    python benchmarks/export_parity.py parity MODEL --checkpoint F --data FOLDER --files DIR --results-file JSON
    python benchmarks/export_parity.py speed  MODEL --checkpoint F --data FOLDER --files DIR --results-file JSON

``parity`` exports the dense model and every method in every format into DIR, runs the files on images spread evenly
over the data set, and compares the class of every image, and the tokens chosen at every site, with those of PyTorch.
``speed`` times the files of DIR, interleaved within each engine. Both put what they found into one JSON file with a
table (.md) beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.export.check import WithTokens, settled
from tokensieve.export.format import Format
from tokensieve.export.run import FORMATS
from tokensieve.export.torch_program import TRACED_BATCH, trace
from tokensieve.measure import speed
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import environment
from tokensieve.models.load import create, share_weights
from tokensieve.models.options import ModelOptions
from tokensieve.utils.files import replacing

METHODS = ["bat", "tosa:score=own", "tome:r=13", "evit:keep=0.7"]
DENSE = "dense"
TOLERANCE = 1e-4
SAME_TOKENS = (
    "Same tokens: the images whose tokens are in the same place after every site. Undecided: those in which a change "
    "of the pixels by 1e-5 moves a token, so that two runtimes may differ and both be right."
)
SPEED_UP = (
    "S: speed-up over the dense model in the same engine. Kept: the S/F of the exported model over that in PyTorch; "
    "the goal is 0.90."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["parity", "speed"])
    parser.add_argument("model")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--files", type=Path, required=True, help="folder for the exported files")
    parser.add_argument("--method", action="append", help=f"default {', '.join(METHODS)}")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="default torch, onnx, openvino")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--speed-batch-size", type=int, action="append", help="default 1 and 16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results-file", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    dense = create(ModelOptions(args.model, checkpoint=args.checkpoint))
    models = {DENSE: dense} | {spec: reduce(dense, ts.parse(spec)) for spec in args.method or METHODS}
    formats = [FORMATS[name]() for name in args.format or ("torch", "onnx", "openvino")]
    content = read(args.results_file) or {"model": args.model, "parity": [], "speed": []}
    content[f"environment of {args.step}"] = environment() | {form.name: version(form) for form in formats}
    data = DataOptions(data=args.data, limit=args.limit, batch_size=args.batch_size, workers=2)
    if args.step == "parity":
        batches = [images for images, _ in open_images(data, dense)]
        args.files.mkdir(parents=True, exist_ok=True)
        for spec, model in models.items():
            expected = answers(WithTokens(model) if ts.is_applied(model) else model, batches)
            undecided = sum(len(x) for x in batches) - sum(len(kept(model, x)) for x in batches)
            for form in formats:
                row = {"variant": spec, "format": form.name, "undecided by rounding": undecided}
                row |= parity(model, form, file_of(args.files, spec, form), batches, expected)
                print(row, flush=True)
                put(content["parity"], row, ("variant", "format"))
                write(args.results_file, content)
    else:
        sizes = args.speed_batch_size or [1, 16]
        images = open_images(data, dense).first(max(sizes))
        for batch in sizes:
            for row in speeds(models, formats, args.files, images[:batch], args.rounds):
                print(row, flush=True)
                put(content["speed"], row, ("variant", "batch"))
        write(args.results_file, content)


def version(form: Format) -> str:
    """The version of what runs a format."""
    if form.name in ("torch", "aotinductor"):
        return torch.__version__
    return str(__import__(form.packages[-1]).__version__)


def file_of(folder: Path, spec: str, form: Format) -> Path:
    """Where a variant's file lies."""
    return folder / f"{spec.replace(':', '-').replace('=', '')}-{form.name}{form.suffix}"


def answers(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """What a model answers, every output over all images."""
    with torch.no_grad():
        outputs = [model(x) for x in batches]
    whole = [out if isinstance(out, tuple) else (out,) for out in outputs]
    return [torch.cat(parts) for parts in zip(*whole, strict=True)]


def kept(model: nn.Module, x: Tensor) -> Tensor:
    """The images of a batch whose tokens do not hang on rounding."""
    try:
        return settled(model, x)
    except ts.TokensieveError:
        return x[:0]


def parity(
    model: nn.Module, form: Format, path: Path, batches: Sequence[Tensor], expected: list[Tensor]
) -> dict[str, Any]:
    """Export the model, run the file on every image, and compare with PyTorch's answers and tokens."""
    exported = ts.export_model(model, path, format=form.name, force=True)
    logits = answers_of(exported.open(), batches)
    difference = (logits - expected[0]).abs().amax(dim=1)
    row: dict[str, Any] = {
        "images": len(logits),
        "same top-1": int((logits.argmax(1) == expected[0].argmax(1)).sum()),
        "logits within 1e-4": int((difference <= TOLERANCE).sum()),
        "median difference": difference.median().item(),
        "largest difference": difference.max().item(),
        "megabytes": exported.size / 1e6,
        "operators": operators(form, path),
    }
    if not ts.is_applied(model):
        return row
    with tempfile.TemporaryDirectory() as folder:
        tokens_file = Path(folder) / path.name
        form.write(trace(WithTokens(model).eval(), batches[0][:TRACED_BATCH]), tokens_file)
        chosen = all_outputs(form, tokens_file, batches)[1:]
    same = torch.ones(len(logits), dtype=torch.bool)
    for theirs, ours in zip(chosen, expected[1:], strict=True):
        same &= (theirs == ours).all(dim=1)
    return row | {"sites": len(chosen), "same tokens": int(same.sum())}


def answers_of(run: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Tensor:
    """The logits of every image."""
    with torch.inference_mode():
        return torch.cat([run(x).clone() for x in batches])


def all_outputs(form: Format, path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Every output of a file that has several."""
    if form.name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = [session.run(None, {session.get_inputs()[0].name: x.numpy()}) for x in batches]
    elif form.name == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = [[value.copy() for value in compiled(x.numpy()).values()] for x in batches]
    else:
        run: Any = form.open(path)
        with torch.inference_mode():
            outputs = [[value.numpy() for value in run(x)] for x in batches]
    return [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*outputs, strict=True)]


def operators(form: Format, path: Path) -> dict[str, int]:
    """How many nodes of each kind that is interesting here a file has."""
    if form.name == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load(path).graph.node]
    elif form.name == "openvino":
        import openvino

        kinds = [node.get_type_name() for node in openvino.Core().read_model(path).get_ops()]
        kinds = [kind for kind in kinds if kind not in ("Constant", "Parameter", "Result")]
    elif form.name == "torch":
        kinds = [str(node.target) for node in torch.export.load(path).graph.nodes if node.op == "call_function"]
    else:
        return {}
    return {"all": len(kinds), "scatter": sum("scatter" in kind.lower() or "index_put" in kind for kind in kinds)}


def speeds(
    models: dict[str, nn.Module], formats: Sequence[Format], files: Path, x: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Speed-ups over the dense model in every engine at one batch size; one row a variant."""
    engines: dict[str, dict[str, Callable[[Tensor], Any]]] = {"PyTorch": dict(models)}
    for form in formats:
        engines[form.name] = {spec: form.open(file_of(files, spec, form)) for spec in models}
    timings = {name: speed.measure(runs, x, rounds=rounds) for name, runs in engines.items()}
    dense_macs = count(share_weights(models[DENSE]), x[:1]).total
    rows = []
    for spec, model in models.items():
        gain = dense_macs / count(model, x[:1]).total
        row: dict[str, Any] = {"variant": spec, "batch": len(x), "F": gain, "engines": {}}
        for name, timing in timings.items():
            own = timing[spec]
            row["engines"][name] = {
                "milliseconds": own.median * 1e3,
                "S": own.speedup(timing[DENSE]),
                "S over F": own.speedup(timing[DENSE]) / gain,
                "spread": own.spread,
            }
        for name in engines:
            row["engines"][name]["S over S in PyTorch"] = row["engines"][name]["S"] / row["engines"]["PyTorch"]["S"]
        rows.append(row)
    return rows


def read(path: Path) -> dict[str, Any] | None:
    """The results so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def put(rows: list[dict[str, Any]], row: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Add a row, or replace the one of the same keys."""
    for number, known in enumerate(rows):
        if all(known[key] == row[key] for key in keys):
            rows[number] = row
            return
    rows.append(row)


def write(path: Path, content: dict[str, Any]) -> None:
    """The JSON file and its table."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with replacing(path.with_suffix(".md")) as beside:
        beside.write_text(page(content), encoding="utf-8")


def page(content: dict[str, Any]) -> str:
    """The results as tables."""
    lines = [f"# {content['model']}, exported", "", "Written by `benchmarks/export_parity.py`."]
    for step, of in (("parity", "same answers"), ("speed", "speed")):
        where = content.get(f"environment of {step}")
        if where:
            runtimes = ", ".join(f"{name} {where[name]}" for name in ("onnx", "openvino") if name in where)
            lines += ["", f"{of.capitalize()}: {where['device']}, {where['threads']} threads, torch {where['torch']}, "
                          f"{runtimes.replace('onnx ', 'onnxruntime ')}."]  # fmt: skip
    if content["parity"]:
        lines += ["", "| variant | format | same top-1 | same tokens | undecided | logits within 1e-4 | "
                  "largest difference | MB | scatters |", "| --- " * 9 + "|"]  # fmt: skip
        for row in content["parity"]:
            of, scatter = row["images"], row["operators"].get("scatter", "–")
            tokens = f"{row['same tokens']} of {of}" if "same tokens" in row else "–"
            lines.append(
                f"| `{row['variant']}` | {row['format']} | {row['same top-1']} of {of} | {tokens} | "
                f"{row['undecided by rounding']} | {row['logits within 1e-4']} of {of} | "
                f"{row['largest difference']:.1e} | {row['megabytes']:.1f} | {scatter} |"
            )
        lines += ["", SAME_TOKENS]
    if content["speed"]:
        engines = list(content["speed"][0]["engines"])
        head = ["variant", "batch", "F", *(f"S, {name}" for name in engines), *(f"kept, {n}" for n in engines[1:])]
        lines += ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
        for row in content["speed"]:
            cells = [f"`{row['variant']}`", str(row["batch"]), f"{row['F']:.2f}"]
            cells += [f"{row['engines'][n]['S']:.2f} ({row['engines'][n]['milliseconds']:.1f} ms)" for n in engines]
            cells += [f"{row['engines'][n]['S over S in PyTorch']:.2f}" for n in engines[1:]]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", SPEED_UP]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)
        main()
