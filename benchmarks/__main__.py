"""One runner for all benchmarks: ``python -m benchmarks NAME [options]``, ``python -m benchmarks NAME --help``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest

NAMES = {
    "speed": "models, operators and ToSA's selector: time beside the dense model and the oracle",
    "tome": "ToMe's authors' code beside ours: the same tokens, and how fast",
    "export": "exported models beside the model they were made from: classes, tokens, speed",
    "judge": "judge a results file by the goals again and rewrite its report",
    "profile": "where the time of missed goals goes",
    "growth": "how time and memory grow with the number of tokens",
    "accuracy": "methods at equal MACs, trained and fitted models and their controls, on images",
    "heads": "how far boxes, heatmaps and masks are from dense, by method at equal tokens",
    "towers": "towers in windows: Qwen2.5-VL on a large image, SAM",
    "labeller": "a next-token labeller on DeiT-Tiny: recall against prefix size",
    "answers": "methods around a decoder on the question model: accuracy by image tokens",
    "prefill": "time to the first token of a vision-language model, beside its oracle",
    "rival": "time to the first token and memory beside sparsevlm from PyPI",
    "clustering": "ATC's clustering beside a loop over scikit-learn",
    "diffrate": "the search that DiffRate's schedules come from",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 when something failed, 2 for wrong input, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(__doc__, *(f"{name:12}{what}" for name, what in NAMES.items()), sep="\n")
        return 0
    if name not in NAMES:
        print(f"error: no benchmark {name!r}{nearest(name, list(NAMES))}; python -m benchmarks --help", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.options(parser)
    try:
        return int(module.run(parser.parse_args(given[1:])) or 0)
    except TokensieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
