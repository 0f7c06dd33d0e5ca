"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.cli import options as o
from tokensieve.cli.output import accuracy_table, note, show_table
from tokensieve.cli.run import Request, measure
from tokensieve.measure.data import DataArguments
from tokensieve.measure.runtime import Runtime


def evaluate(
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
    device: o.Device = "cpu",
    amp: o.Amp = False,
    amp_dtype: o.AmpDtype = "bfloat16",
    model_dtype: o.ModelDtype = None,
    channels_last: o.ChannelsLast = False,
    torchcompile: o.TorchCompile = None,
    results_file: o.ResultsFile = None,
    resume: o.Resume = False,
    force: o.Force = False,
    verbose: o.Verbose = False,
) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    Rows are written only where --results-file names a file.
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
        ),
        batches=(),
        rounds=0,
        results_file=results_file,
        resume=resume,
        force=force,
    )
    results = measure(request)
    images = max((row.images or 0 for row in results.rows), default=0)
    show_table(accuracy_table(results.rows, f"{model}, {images} images"))
    if results.file is not None:
        note(f"written: {results.file}, {results.file.with_suffix('.csv').name}")
