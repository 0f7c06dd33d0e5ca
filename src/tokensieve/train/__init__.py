"""Training what a method learns: ``train(TrainArguments(...))``, and what ``tokensieve train`` is a thin layer over.

Needs the train extra: ``pip install 'tokensieve[train]'``.
"""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.train.arguments": ["TrainArguments"],
        "tokensieve.train.auxiliary": ["added_losses", "recording"],
        "tokensieve.train.losses": ["Outputs", "Step", "Term"],
        "tokensieve.train.objective": ["Objective"],
        "tokensieve.train.recipe": ["Recipe", "load_recipe", "recipe_names"],
        "tokensieve.train.run": ["train"],
        "tokensieve.train.stages": ["STAGES"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
