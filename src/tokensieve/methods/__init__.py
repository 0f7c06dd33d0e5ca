"""One file a method; found by walking this folder, listed nowhere."""
