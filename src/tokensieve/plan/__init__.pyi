# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.plan.latency import Latency as Latency
from tokensieve.plan.plan import SpeedPlan as SpeedPlan
from tokensieve.plan.plan import make_plan as make_plan

__all__ = [
    "Latency",
    "SpeedPlan",
    "make_plan",
]
