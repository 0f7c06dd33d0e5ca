"""Text encoders for small vision-language models: two random towers, of which the one that sees is theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.helpers.languages import BOS, EOS, PAD, WORDS, Language
from tests.helpers.models import liven
from tokensieve.language.encoder import TextEncoder

CONTEXT = 12  # tokens that the text tower takes
BEGIN, END = 101, 102  # a text, by its own tokenizer
KINDS = {"clip_vision_model": "CLIP", "siglip_vision_model": "Siglip"}
SIZES = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def word_of(number: int) -> str:
    """The word that is token ``number`` of the language model."""
    return f"w{number}"


def _words(first: int, names: dict[str, int], ends: bool) -> Any:
    """A tokenizer of the words of ``WORDS`` from the token ``first`` on, and of special tokens by ``names``."""
    import tokenizers
    import transformers

    ids = {**names, **{word_of(number): first + place for place, number in enumerate(WORDS)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    begin, end = (next(name for name in names if name.startswith(start)) for start in ("<s", "</s"))
    if ends:
        words.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A {end}", special_tokens=[(begin, names[begin]), (end, names[end])]
        )
    kinds = {"bos_token": begin, "eos_token": end, "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **kinds)


def prompt_tokenizer() -> Any:
    """Of the language models of ``tests.helpers.languages``."""
    import tokenizers

    found = _words(WORDS.start, {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 95}, ends=True)
    found.add_special_tokens(
        {"additional_special_tokens": [tokenizers.AddedToken(f"<extra{k}>", special=True) for k in range(12)]}
    )
    return found


def text_tokenizer() -> Any:
    """Of the text towers: the same words by other numbers."""
    return _words(4, {"<pad>": 0, "<s>": BEGIN, "</s>": END, "<unk>": 1}, ends=True)


def encoder_of(language: Language) -> TextEncoder:
    """Two towers in float64 whose vision tower has the weights of the model's."""
    import transformers

    dense = language.build()
    tower = dense.model.vision_tower
    kind = KINDS[tower.config.model_type]
    text = {**SIZES, "vocab_size": 103, "max_position_embeddings": CONTEXT, "bos_token_id": BEGIN, "pad_token_id": 0}
    torch.manual_seed(1)
    more = {"projection_dim": 24} if kind == "CLIP" else {}
    vision = tower.config.to_dict() | ({"vision_use_head": True} if kind == "Siglip" else {})
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config={**text, "eos_token_id": END, "projection_size": tower.config.hidden_size},
        **more,
    )
    model = liven(getattr(transformers, f"{kind}Model")(config)).double().eval()
    model.vision_model.load_state_dict(tower.state_dict(), strict=False)
    return TextEncoder(model, text_tokenizer(), prompt_tokenizer())


def plain_patches(encoder: TextEncoder, pixels: Tensor) -> Tensor:
    """(B, N, D) what the towers' own weights make of every patch of pictures, written out."""
    model: Any = encoder.model
    vision = model.vision_model
    states = vision(pixels).last_hidden_state
    if model.config.model_type == "siglip":
        head = vision.head
        width = states.shape[-1]
        value = states @ head.attention.in_proj_weight[2 * width :].T + head.attention.in_proj_bias[2 * width :]
        pooled = head.attention.out_proj(value)  # the only key has all of the attention
        found: Tensor = pooled + head.mlp(head.layernorm(pooled))
        return found
    norm = vision.post_layernorm
    states = states[:, 1:]
    centred = states - states.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    return (scaled * norm.weight + norm.bias) @ model.visual_projection.weight.T  # type: ignore[no-any-return]


def plain_text(encoder: TextEncoder, words: list[int]) -> tuple[Tensor, Tensor]:
    """(P, D) and (T, D): the embedding of every piece of a prompt of these tokens of the language model, by the model's
    own ``get_text_features``, and the projected states of its words."""
    model: Any = encoder.model
    siglip = model.config.model_type == "siglip"
    texts, states = [], []
    for start in range(0, len(words), CONTEXT - 2):
        part = [4 + WORDS.index(number) for number in words[start : start + CONTEXT - 2]]
        ids = [BEGIN, *part, END]
        ids += [0] * (CONTEXT - len(ids)) if siglip else []
        output = model.get_text_features(input_ids=torch.tensor([ids]))
        texts.append(output.pooler_output[0])
        project = model.text_model.head if siglip else model.text_projection
        states += list(project(output.last_hidden_state[0, 1 : 1 + len(part)]))
    return torch.stack(texts), torch.stack(states)
