"""What ``bench`` and ``eval`` do alike: from options to a model, its variants, the images and the results file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import typer
from torch import Tensor, nn

from tokensieve.cli import options as o
from tokensieve.cli.output import Bars, note, progress_bars
from tokensieve.data.images import DataArguments, open_images
from tokensieve.data.stream import ImageStream
from tokensieve.engine.apply import applied, is_applied, remove
from tokensieve.errors import TokensieveError
from tokensieve.measure import benchmark as measuring
from tokensieve.measure.fidelity import judge_of
from tokensieve.measure.judge import Judge
from tokensieve.measure.macs import count
from tokensieve.measure.results import Results, environment, open_results
from tokensieve.measure.solver import check_share, solve
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell, sweep
from tokensieve.models.load import has_weights, is_saved, share_weights
from tokensieve.models.runtime import Runtime
from tokensieve.pixels.arguments import CLASSIFICATION, TaskArguments, create_model
from tokensieve.pixels.data import open_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.pixels.sliding import sliding
from tokensieve.pixels.task import PixelJudge
from tokensieve.train.origin import dense_origin
from tokensieve.utils.processes import join

NEAR = 0.03  # how far from the asked share of the MACs a method of "all" may lie to be compared
ALL = "all"  # as a spec: every method that needs no training
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``bench`` and ``eval``: everything that is asked for but what to time."""

    model: o.Model
    method: o.Methods = None
    data: o.Data = None
    dataset: o.DatasetName = ""
    split: o.Split = "validation"
    class_map: o.ClassMap = None
    limit: o.Limit = None
    macs: o.Macs = None
    pretrained: o.Pretrained = False
    checkpoint: o.Checkpoint = None
    num_classes: o.NumClasses = None
    in_chans: o.InChans = None
    img_size: o.ImgSize = None
    crop_pct: o.CropPct = None
    interpolation: o.Interpolation = None
    mean: o.Mean = None
    std: o.Std = None
    batch_size: o.BatchSize = None
    workers: o.Workers = o.DEFAULT_WORKERS
    device: o.Device = "cpu"
    amp: o.Amp = False
    amp_dtype: o.AmpDtype = "bfloat16"
    model_dtype: o.ModelDtype = None
    channels_last: o.ChannelsLast = False
    torchcompile: o.TorchCompile = None
    task: o.Task = None
    head: o.Head = None
    ignore_index: o.IgnoreIndex = None
    reduce_zero_label: o.ReduceZeroLabel = False
    max_depth: o.MaxDepth = None
    depth_scale: o.DepthScale = None
    median_scaling: o.MedianScaling = False
    eigen_crop: o.EigenCrop = False
    slide: o.Slide = None
    stride: o.Stride = None
    results_file: o.ResultsFile = None
    resume: o.Resume = False
    force: o.Force = False

    def part(self, kind: type[T]) -> T:
        """The fields that the dataclass ``kind`` has too."""
        names = {field.name for field in fields(kind)} & {field.name for field in fields(self)}  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in names})

    def images(self, dense: bool) -> DataArguments:
        """Where the images are and how they are prepared, for a pixel task or for classification."""
        return replace(self.part(DataArguments), batch_size=self.batch_size or (8 if dense else 64))

    @property
    def tasks(self) -> TaskArguments:
        """The task and its options."""
        return self.part(TaskArguments)

    @property
    def runtime(self) -> Runtime:
        """Device and precision."""
        return self.part(Runtime)

    def settings(self, model: nn.Module) -> dict[str, Any]:
        """What the figures of ``model`` depend on, apart from the variants and what is timed."""
        dense = isinstance(model, PixelModel)
        data = asdict(self.images(dense))
        del data["workers"]
        names = ("model", "pretrained", "checkpoint", "num_classes", "in_chans")
        runtime = asdict(self.runtime) | {"dtype": self.runtime.dtype}
        settings = {name: getattr(self, name) for name in names} | data | runtime
        if isinstance(model, PixelModel):
            settings |= {"task": model.task.to_dict(), "head": model.head.name}
            settings |= {"slide": self.slide, "stride": self.stride}
        return settings


def measure(request: Request, *, batches: Sequence[int] = (), rounds: int = 0, cuda_graph: bool = False) -> Results:
    """Carry the request out, with progress bars; Ctrl-C returns what is done, and ``stopped`` is set.

    Args:
        request: what to measure.
        batches: batch sizes to time; none for accuracy alone.
        rounds: timings of each model.
        cuda_graph: whether to time replays of a CUDA graph.
    """
    processes = join(request.device)
    specs = request.method or []
    compositions = [variant for spec in specs if spec != ALL for variant in sweep(spec)]
    others, left_out = measuring.everyone() if ALL in specs else ([], {})
    runtime = replace(request.runtime, cuda_graph=cuda_graph, device=processes.device(request.device))
    _check(request, runtime)
    dense, variants = _models(request)
    settings = request.settings(dense) | {"rounds": rounds, "cuda_graph": cuda_graph}
    results = Results(settings)
    if processes.main:
        results = open_results(
            request.results_file,
            settings,
            shlex.join(["tokensieve", *sys.argv[1:]]),
            resume=request.resume,
            force=request.force,
        )
        results.environment = environment(runtime.device)
    results.rows = processes.from_main(lambda: results.rows)
    results.left_out |= left_out
    images, judge = _images(request, dense)
    for line in images.notes:
        note(line)
    with progress_bars() as bars:
        try:
            wanted = processes.from_main(lambda: _at_macs(request, dense, compositions, images, bars))
            possible, reasons = processes.from_main(lambda: _possible(request, dense, others, images, bars))
            results.left_out |= reasons
            variants |= {spell(methods): measuring.reduce(dense, methods) for methods in (*wanted, *possible)}
            measuring.bench(
                dense,
                variants,
                images,
                results,
                runtime=runtime,
                batches=batches,
                rounds=rounds,
                progress=bars,
                processes=processes,
                judge=judge,
            )
        except KeyboardInterrupt:
            if not results.rows:
                raise
            results.stopped = True
            note("stopped; what is done is kept" + (", go on with --resume" if results.file else ""))
    if results.skipped:
        names = ", ".join(results.skipped[:5]) + (", …" if len(results.skipped) > 5 else "")
        note(f"{len(results.skipped)} image files cannot be read and were left out: {names}")
    if isinstance(dense, PixelModel) and results.rows and len(results.rows[0].metrics) == 1:
        note(f"no target has a pixel that counts, so all are compared with the dense model alone: {dense.task.counts}")
    for name, reason in results.left_out.items():
        note(f"left out: {name}: {reason}")
    if not processes.main:
        raise typer.Exit()
    return results


def finish(results: Results) -> None:
    """End a command that Ctrl-C stopped with the exit code that says so."""
    if results.stopped:
        raise typer.Exit(130)


def _check(request: Request, runtime: Runtime) -> None:
    """Refuse what needs no model and no image to be refused."""
    if request.macs and not request.method:
        raise TokensieveError("--macs says what methods may cost, and there is none: give at least one --method")
    for share in request.macs or ():
        check_share(share)
    request.tasks.check()
    runtime.check()


def _images(request: Request, dense: nn.Module) -> tuple[ImageStream, Judge]:
    """What to measure on, and how answers are compared."""
    if not isinstance(dense, PixelModel):
        return open_images(request.images(False), dense), judge_of(dense)
    if request.stride is not None and request.slide is None:
        raise TokensieveError("--stride is between sliding windows: give --slide N, the images' short side")
    images = open_pairs(request.images(True), dense, slide=request.slide)
    if images.window is None:
        return images, dense.judge()
    window, batch = images.window, request.images(True).batch_size
    stride = None if request.stride is None else (request.stride, request.stride)
    return images, PixelJudge(dense.task, lambda model: sliding(model, window, stride, batch))


def _models(request: Request) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The dense model, and the saved reduced one where the model is a folder written by ``ts.save``; a trained one is
    compared with the dense model that it was trained from, where that can be had."""
    model = create_model(
        request.model,
        request.tasks,
        pretrained=request.pretrained,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        in_chans=request.in_chans,
        img_size=request.img_size,
    )
    saved = is_applied(model)
    if not has_weights(request.model, request.pretrained, request.checkpoint):
        note("the weights are random: give --pretrained or --checkpoint FILE; speed and MACs hold, accuracy does not")
    elif isinstance(model, PixelModel) and request.task not in (None, CLASSIFICATION) and not is_saved(request.model):
        note("the head is random: give a folder that tokensieve train wrote; speed and MACs hold, the figures do not")
    if not saved:
        return model, {}
    origin, said = dense_origin(request.model)
    if said:
        note(said)
    if origin is not None:
        return origin, {f"{spell(applied(model))}, trained": model}
    return remove(share_weights(model)).eval(), {spell(applied(model)): model}


def _at_macs(
    request: Request,
    dense: nn.Module,
    compositions: Sequence[tuple[Method, ...]],
    images: ImageStream,
    bars: Bars,
) -> list[tuple[Method, ...]]:
    """The compositions that are asked for, at the asked MACs where there are any."""
    if not (request.macs and compositions):
        return list(compositions)
    sample = _sample(images, compositions)
    bars.start("finding methods of equal MACs", len(request.macs) * len(compositions))
    wanted = []
    for composition in compositions:
        for share in request.macs:
            wanted.append(solve(dense, composition, share, sample))
            bars.advance()
    return wanted


def _possible(
    request: Request,
    dense: nn.Module,
    compositions: Sequence[tuple[Method, ...]],
    images: ImageStream,
    bars: Bars,
) -> tuple[list[tuple[Method, ...]], dict[str, str]]:
    """What this model and these MACs allow of ``compositions``, and why they do not allow the others."""
    found: list[tuple[Method, ...]] = []
    left_out: dict[str, str] = {}
    for composition in compositions:
        shares: list[float | None] = [*request.macs] if request.macs else [None]
        for share in shares:
            one = replace(request, macs=None if share is None else [share])
            name = composition[0].name if share is None else f"{composition[0].name} at {share}"
            try:
                (wanted,) = _at_macs(one, dense, [composition], images, bars)
                model = measuring.reduce(dense, wanted)
            except TokensieveError as error:
                left_out[name] = str(error).partition("; leave --macs out")[0]
                continue
            sample = _sample(images, [composition])
            reached = count(model, sample).total / count(dense, sample[:1]).total
            if share is not None and abs(reached - share) > NEAR:
                left_out[name] = f"comes no nearer than {spell(wanted)}, {reached:.3f} of the dense model"
            else:
                found.append(wanted)
    return found, left_out


def _sample(images: ImageStream, compositions: Sequence[tuple[Method, ...]]) -> Tensor:
    """Images to count MACs on: several where images keep different numbers of tokens."""
    ragged = any(method.ragged for methods in compositions for method in methods)
    return images.first(measuring.COUNTED_IMAGES if ragged else 1)


def default_results_file(model: str) -> str:
    """A name in the current folder after the model."""
    return f"tokensieve-{Path(model.replace(':', '-').rstrip('/')).name}.json"
