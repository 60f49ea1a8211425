"""The shipped model's tokenizer and untrained text encoder."""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fastrepulse.default_model.captions import vocabulary
from fastrepulse.default_model.subjects import SUBJECTS

MAX_TOKENS = 24
TEXT_WIDTH = 128


def build_tokenizer() -> CLIPTokenizer:
    """Returns a byte-pair tokenizer in which every word of the captions is one token."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(
        sorted(vocabulary(SUBJECTS)),
        trainers.BpeTrainer(
            vocab_size=4000,
            min_frequency=1,
            special_tokens=[start, end],
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    # Other words of prompts may end in any letter, so every final letter needs a token
    vocab = {token: i for i, token in enumerate(learned["vocab"])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(f"{letter}</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """Returns the configuration of a text encoder with two layers and heads of width 32."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns a text encoder with two layers."""
    return CLIPTextModel(text_config(tokenizer, TEXT_WIDTH))
