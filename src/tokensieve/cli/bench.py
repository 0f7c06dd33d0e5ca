"""``tokensieve bench``: the dense model, every variant and its oracle; one table, one picture."""

from __future__ import annotations

from typing import Annotated

import typer

from tokensieve.cli import options as o
from tokensieve.cli.output import accuracy_table, note, show_table, speed_table
from tokensieve.cli.run import Request, default_results_file, measure
from tokensieve.measure.data import DataArguments
from tokensieve.measure.plot import pareto
from tokensieve.measure.runtime import Runtime


def bench(
    model: o.Model,
    method: o.Methods = None,
    data: o.Data = None,
    dataset: o.DatasetName = "",
    split: o.Split = "validation",
    class_map: o.ClassMap = None,
    limit: o.Limit = None,
    macs: o.Macs = None,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    num_classes: o.NumClasses = None,
    in_chans: o.InChans = None,
    img_size: o.ImgSize = None,
    crop_pct: o.CropPct = None,
    interpolation: o.Interpolation = None,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = 64,
    workers: o.Workers = o.DEFAULT_WORKERS,
    speed_batch_size: Annotated[
        list[int] | None,
        typer.Option("--speed-batch-size", min=1, help="Batch size to time; repeatable. Default: 1 and 16."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of each model.")] = 10,
    device: o.Device = "cpu",
    amp: o.Amp = False,
    amp_dtype: o.AmpDtype = "bfloat16",
    model_dtype: o.ModelDtype = None,
    channels_last: o.ChannelsLast = False,
    torchcompile: o.TorchCompile = None,
    cuda_graph: o.CudaGraph = False,
    results_file: o.ResultsFile = None,
    resume: o.Resume = False,
    force: o.Force = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure dense model, reduced variants and their oracles in one run: MACs, accuracy, agreement, speed, memory.

    S is the measured speed-up over the dense model, F what the MACs promise, O that of the oracle (the same token
    counts with a selection that costs nothing). Rows go to JSON and CSV as they are done, a Pareto plot beside them.
    """
    request = Request(
        model=model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        num_classes=num_classes,
        methods=method or [],
        macs=macs or [],
        data=DataArguments(
            data=data,
            dataset=dataset,
            split=split,
            class_map=class_map,
            img_size=img_size,
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=tuple(mean) if mean else None,
            std=tuple(std) if std else None,
            batch_size=batch_size,
            workers=workers,
            in_chans=in_chans,
            limit=limit,
        ),
        runtime=Runtime(
            device=device,
            amp=amp,
            amp_dtype=amp_dtype,
            model_dtype=model_dtype,
            channels_last=channels_last,
            torchcompile=torchcompile,
            cuda_graph=cuda_graph,
        ),
        batches=tuple(dict.fromkeys(speed_batch_size or (1, 16))),
        rounds=rounds,
        results_file=results_file or default_results_file(model),
        resume=resume,
        force=force,
    )
    results = measure(request)
    images = max((row.images or 0 for row in results.rows), default=0)
    show_table(accuracy_table(results.rows, f"{model}, {images} images"))
    for batch in request.batches:
        if any(speed.batch == batch for row in results.rows for speed in row.speed):
            show_table(speed_table(results.rows, batch))
    assert results.file is not None and results.plot_file is not None
    setting = f"{results.environment['device']}, {results.settings['dtype']}, torch {results.environment['torch']}"
    pareto(results.rows, results.plot_file, f"{model} on {images} images ({setting})")
    note(f"written: {results.file}, {results.file.with_suffix('.csv').name}, {results.plot_file.name}")
