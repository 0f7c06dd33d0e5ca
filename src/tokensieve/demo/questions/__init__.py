"""A small vision-language model trained for the demo: questions about canvases of several digits and shapes."""
