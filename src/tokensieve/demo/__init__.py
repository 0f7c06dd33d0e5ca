"""A small, self-contained demonstration: digits in clutter and a dense ViT trained on them."""
