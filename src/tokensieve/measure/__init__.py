"""What a reduced model costs, how fast it is and how well it answers, against the dense model and its oracle."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.measure.benchmark": ["bench", "reduce"],
        "tokensieve.measure.fidelity": ["Classification", "Fidelity"],
        "tokensieve.measure.judge": ["Judge", "Meters"],
        "tokensieve.measure.macs": ["MacReport", "count"],
        "tokensieve.measure.memory": ["peak"],
        "tokensieve.measure.results": ["Results", "Row", "Speed", "open_results"],
        "tokensieve.measure.retrieval": ["Retrieval", "RetrievalMeters"],
        "tokensieve.measure.solver": ["solve"],
        "tokensieve.measure.timing": ["Timings", "Variant", "time_variants"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
