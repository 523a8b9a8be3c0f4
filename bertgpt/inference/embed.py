"""Text embeddings."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.sentence_pairs import encode
from bertgpt.errors import InputError, check_ids
from bertgpt.inference.forward import apply_field
from bertgpt.model.bert import BertModel
from bertgpt.model.blocks import Model
from bertgpt.model.gpt import OpenAIGPTModel


def embed(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: str = "mean",
    batch_size: int = 32,
) -> np.ndarray:
    """Return one vector per text, from the last layer.

    Args:
        model: a BERT or GPT-1, with or without a head.
        params: its parameters.
        tokenizer: the model's tokenizer.
        texts: N texts.
        pooling: "mean" over the tokens of a text (including BERT's [CLS] and [SEP]), or "cls", the state at BERT's
            [CLS].
        batch_size: the number of texts per batch.

    Returns:
        [N D] float32, not normalized.

    Raises:
        InputError: a text is empty or longer than the model's positions, or `pooling` is unknown.
    """
    config = model.config
    if pooling not in ("mean", "cls") or (pooling == "cls" and config.causal):
        raise InputError(f"pooling is {pooling!r}; choose mean, or for BERT also cls")
    if isinstance(texts, str) or batch_size < 1:
        raise InputError("embed takes a list of texts, and a batch_size of at least 1")
    encoder: Model = OpenAIGPTModel(config) if config.causal else BertModel(config, add_pooling_layer=False)
    encoder = encoder.clone(dtype=model.dtype, attention=model.attention)
    inner = params.get("transformer" if config.causal else "bert", params)  # a bare encoder has no prefix
    ids = [_text_ids(tokenizer, text, number, config) for number, text in enumerate(texts, 1)]
    vectors = np.zeros((len(ids), config.hidden_size), np.float32)
    order = np.argsort([len(row) for row in ids], kind="stable")  # batch texts of similar length
    for first in range(0, len(ids), batch_size):
        chosen = order[first : first + batch_size]
        batch = _padded([ids[row] for row in chosen], batch_size, config.max_positions)
        states = apply_field(encoder, inner, batch, "last_hidden_state").astype(jnp.float32)
        weight = batch["attention_mask"] if pooling == "mean" else np.arange(states.shape[1])[None] == 0
        weight = weight / weight.sum(1, keepdims=True)  # [B T]
        vectors[chosen] = np.einsum("BTD,BT->BD", np.asarray(states), weight)[: len(chosen)]
    return vectors


def _text_ids(tokenizer: Tokenizer, text: str, number: int, config: ModelConfig) -> list[int]:
    ids = tokenizer.encode(text).ids if config.causal else encode(tokenizer, text)["input_ids"][0].tolist()
    if len(ids) <= (0 if config.causal else 2):
        raise InputError(f"text {number} is empty; remove it")
    if len(ids) > config.max_positions:
        raise InputError(f"text {number} has {len(ids)} tokens, over the model's {config.max_positions}; shorten it")
    check_ids(np.array(ids), config.vocab_size)
    return ids


def _padded(ids: list[list[int]], rows: int, positions: int) -> dict[str, np.ndarray]:
    """Return a batch of input_ids and attention_mask, each [R T].

    R and T are powers of two, at most `rows` and `positions`, so few programs are compiled. A row without a text has
    one token, which is attended to and whose output is ignored.
    """
    width = min(_power_of_two(max(map(len, ids))), positions)
    rows = min(_power_of_two(len(ids)), rows)
    tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    mask[len(ids) :, 0] = 1
    for row, text in enumerate(ids):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": tokens, "attention_mask": mask}


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
