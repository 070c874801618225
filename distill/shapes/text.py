"""Tokenizer and text encoder of the shapes world: a byte-fallback BPE and a small Gemma 2."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from .scenes import all_scenes

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # any text can be encoded: unknown letters fall to bytes
MAX_SEQUENCE_LENGTH = 32
VOCABULARY_SIZE = 448


def _words() -> Iterator[str]:
    """Every word of every caption, as it stands at the start of a text and after a space."""
    for scene in (scene for scenes in all_scenes() for scene in scenes):
        for word in scene.caption.split():
            yield from (word, "▁" + word)


def new_tokenizer() -> GemmaTokenizer:
    """One token for each word that captions use; merges never cross a space."""
    learner = Tokenizer(BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = list("abcdefghijklmnopqrstuvwxyz▁,.-")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS + BYTES,
        initial_alphabet=letters,
        show_progress=False,
    )
    learner.train_from_iterator(_words(), trainer)
    return GemmaTokenizer(
        vocab=learner.get_vocab(),
        merges=[tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]],
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
