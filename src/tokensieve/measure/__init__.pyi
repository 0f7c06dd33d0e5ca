# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.measure.benchmark import bench as bench
from tokensieve.measure.benchmark import reduce as reduce
from tokensieve.measure.fidelity import Classification as Classification
from tokensieve.measure.fidelity import Fidelity as Fidelity
from tokensieve.measure.judge import Judge as Judge
from tokensieve.measure.judge import Meters as Meters
from tokensieve.measure.macs import MacReport as MacReport
from tokensieve.measure.macs import count as count
from tokensieve.measure.memory import peak as peak
from tokensieve.measure.results import Results as Results
from tokensieve.measure.results import Row as Row
from tokensieve.measure.results import Speed as Speed
from tokensieve.measure.results import open_results as open_results
from tokensieve.measure.retrieval import Retrieval as Retrieval
from tokensieve.measure.retrieval import RetrievalMeters as RetrievalMeters
from tokensieve.measure.solver import solve as solve
from tokensieve.measure.timing import Timings as Timings
from tokensieve.measure.timing import Variant as Variant
from tokensieve.measure.timing import time_variants as time_variants

__all__ = [
    "Classification",
    "Fidelity",
    "Judge",
    "MacReport",
    "Meters",
    "Results",
    "Retrieval",
    "RetrievalMeters",
    "Row",
    "Speed",
    "Timings",
    "Variant",
    "bench",
    "count",
    "open_results",
    "peak",
    "reduce",
    "solve",
    "time_variants",
]
