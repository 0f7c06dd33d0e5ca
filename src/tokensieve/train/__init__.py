"""Training what a method learns: ``train(TrainOptions(...))``, and what ``tokensieve train`` is a thin layer over.

Needs the train extra: ``pip install 'tokensieve[train]'``.
"""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.train.options": ["STAGES", "TrainOptions"],
        "tokensieve.train.auxiliary": ["added_losses", "recording"],
        "tokensieve.train.losses": ["Outputs", "Step", "Term"],
        "tokensieve.train.objective": ["Objective"],
        "tokensieve.train.recipe": ["Recipe", "load_recipe", "recipe_names"],
        "tokensieve.train.run": ["train"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
