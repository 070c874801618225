"""Tokenizers and text encoders of the shapes world: Gemma 2 for SANA, CLIP and T5 for SD3 and FLUX.

The tokenizers are real ones of their kinds, learned from the words of all captions: a caption's word
is one token, and any other text falls back to letters or bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .scenes import all_scenes

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # any text can be encoded: unknown letters fall to bytes
MAX_SEQUENCE_LENGTH = 32
VOCABULARY_SIZE = 448

CAPTION_LENGTH = 16  # tokens; the longest caption has 14
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"

CLIP_WIDTH = 64
T5_WIDTH = 128


def _words() -> Iterator[str]:
    """Every word of every caption."""
    for scene in (scene for scenes in all_scenes() for scene in scenes):
        yield from scene.caption.split()


def new_tokenizer() -> GemmaTokenizer:
    """Byte-fallback BPE. One token for each word that captions use; merges never cross a space."""
    learner = Tokenizer(BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = list("abcdefghijklmnopqrstuvwxyz▁,.-")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS + BYTES,
        initial_alphabet=letters,
        show_progress=False,
    )
    # A word stands at the start of a text, or after a space.
    learner.train_from_iterator((form for word in _words() for form in (word, "▁" + word)), trainer)
    return GemmaTokenizer(
        vocab=learner.get_vocab(),
        merges=_merges(learner),
        model_max_length=MAX_SEQUENCE_LENGTH,
        padding_side="right",
        add_bos_token=True,
    )


def new_text_encoder(hidden: int = 128, layers: int = 2) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=2 * MAX_SEQUENCE_LENGTH,
            max_position_embeddings=2 * MAX_SEQUENCE_LENGTH,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def new_clip_tokenizer() -> CLIPTokenizer:
    """BPE over bytes, words ending in `</w>`."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{sign}</w>" for sign in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(_words(), trainer)
    return CLIPTokenizer(
        vocab=learner.get_vocab(),
        merges=_merges(learner),
        model_max_length=CAPTION_LENGTH,
        pad_token="<|endoftext|>",
    )


def new_clip(vocabulary: int, projected: bool) -> Any:
    """With a projection as SD3's two are, or without as FLUX's."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def new_t5_tokenizer() -> T5TokenizerFast:
    """Unigram: the captions' words are likelier than their letters; other signs are unknown."""
    words = sorted({"▁" + word for word in _words()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *((word, -4.0) for word in words), *((letter, -8.0) for letter in "▁" + LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=CAPTION_LENGTH)


def new_t5(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def _merges(learner: Tokenizer) -> list[tuple[str, ...]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
