"""Training what a method learns: ``train(TrainArguments(...))``, and what ``tokensieve train`` is a thin layer over.

Needs the train extra: ``pip install 'tokensieve[train]'``.
"""
