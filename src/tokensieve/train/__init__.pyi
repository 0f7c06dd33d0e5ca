# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.train.auxiliary import added_losses as added_losses
from tokensieve.train.auxiliary import recording as recording
from tokensieve.train.losses import Outputs as Outputs
from tokensieve.train.losses import Step as Step
from tokensieve.train.losses import Term as Term
from tokensieve.train.objective import Objective as Objective
from tokensieve.train.options import STAGES as STAGES
from tokensieve.train.options import TrainOptions as TrainOptions
from tokensieve.train.recipe import Recipe as Recipe
from tokensieve.train.recipe import load_recipe as load_recipe
from tokensieve.train.recipe import recipe_names as recipe_names
from tokensieve.train.run import train as train

__all__ = [
    "STAGES",
    "Objective",
    "Outputs",
    "Recipe",
    "Step",
    "Term",
    "TrainOptions",
    "added_losses",
    "load_recipe",
    "recipe_names",
    "recording",
    "train",
]
