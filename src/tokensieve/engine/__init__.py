"""A model is reduced, runs, and is given back."""
