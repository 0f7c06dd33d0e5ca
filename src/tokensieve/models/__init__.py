"""Models by name, saved models, and how they run."""
