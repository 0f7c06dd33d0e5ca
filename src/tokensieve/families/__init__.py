"""One file a model family; found by walking this folder, listed nowhere."""
