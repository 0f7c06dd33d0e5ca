"""Files, processes, names: what has nothing to do with tokens."""
