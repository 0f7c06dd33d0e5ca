"""The gentlest setting that is as fast as asked for."""
