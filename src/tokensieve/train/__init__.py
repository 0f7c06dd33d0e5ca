"""Training what a method learns."""
