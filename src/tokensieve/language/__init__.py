"""Vision-language models: where image tokens meet a language model, and what it costs to leave some out."""
