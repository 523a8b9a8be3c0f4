"""Text embeddings: one vector per text or per token, from any layer."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.sentence_pairs import encode
from bertgpt.errors import InputError, check_ids, quoted
from bertgpt.inference.batches import groups, padded
from bertgpt.model.bert import BertModel
from bertgpt.model.blocks import Model
from bertgpt.model.gpt import OpenAIGPTModel

POOLINGS = ("mean", "cls", "none")
SORTED = 1024  # texts that are sorted by length together, for batches with little padding


def embed(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: str = "mean",
    batch_size: int = 32,
    *,
    layer: int | Sequence[int] = -1,
) -> Any:
    """Return one vector per text, or the states of all its tokens.

    Args:
        model: a BERT or GPT-1, with or without a head.
        params: its parameters.
        tokenizer: the model's tokenizer.
        texts: N texts.
        pooling: "mean" over the tokens of a text (including BERT's [CLS] and [SEP]); "cls", the state at BERT's [CLS];
            or "none", the states of all T tokens of a text, BERT's [CLS] and [SEP] included.
        batch_size: the number of texts per batch.
        layer: 0 for the embeddings, n for the output of the n-th block; -1 for the last, as in Hugging Face's
            `hidden_states`. Several layers give an axis K.

    Returns:
        [N D] or [N K D] float32, not normalized. With pooling "none", a list of N arrays [T D] or [K T D].

    Raises:
        InputError: a text is empty or longer than the model's positions, or an option is unknown.
    """
    if isinstance(texts, str):
        raise InputError("embed takes a list of texts, such as [text]")
    found = list(embed_each(model, params, tokenizer, texts, pooling, batch_size, layer=layer))
    if pooling == "none":
        return found
    layers = () if isinstance(layer, int) else (len(layer),)
    return np.stack(found) if found else np.zeros((0, *layers, model.config.hidden_size), np.float32)


def embed_each(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    pooling: str = "mean",
    batch_size: int = 32,
    *,
    layer: int | Sequence[int] = -1,
) -> Iterator[np.ndarray]:
    """Yield what `embed` returns for each text, in order, with few texts in memory. Arguments and errors as of it."""
    config = model.config
    if pooling not in POOLINGS or (pooling == "cls" and config.causal):
        raise InputError(f"pooling is {quoted(pooling)}; choose mean or none, or for BERT also cls")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    layers = _layers([layer] if isinstance(layer, int) else layer, config.num_layers)
    encoder: Model = OpenAIGPTModel(config) if config.causal else BertModel(config, add_pooling_layer=False)
    encoder = encoder.clone(dtype=model.dtype, attention=model.attention)
    inner = params.get("transformer" if config.causal else "bert", params)  # a bare encoder has no prefix
    for group in groups(enumerate(texts, 1), SORTED):
        ids = [_text_ids(tokenizer, text, number, config) for number, text in group]
        found: list[Any] = [None] * len(ids)
        order = np.argsort([len(row) for row in ids], kind="stable")
        for chosen in groups(order.tolist(), batch_size):
            batch = padded([ids[row] for row in chosen], batch_size, config.max_positions)
            states = np.asarray(_states(encoder, inner, batch, layers))  # [K R T D]
            for row, pooled in zip(chosen, _pooled(states, batch["attention_mask"], pooling), strict=False):
                vectors = pooled[:, : len(ids[row])] if pooling == "none" else pooled
                found[row] = vectors[0] if isinstance(layer, int) else vectors
        yield from found


def _layers(wanted: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the layers as numbers from 0 to `count`."""
    for layer in wanted:
        if not -count - 1 <= layer <= count:
            raise InputError(f"layer {layer} does not exist; give 0 (the embeddings) to {count}, or -1 for the last")
    if not wanted:
        raise InputError("there is no layer; give at least one, such as layer=-1")
    return tuple(layer % (count + 1) for layer in wanted)


def _pooled(states: np.ndarray, mask: np.ndarray, pooling: str) -> np.ndarray:
    """States [K R T D] -> [R K D]; or, without pooling, [R K T D]."""
    if pooling == "none":
        return states.swapaxes(0, 1)
    weight = mask if pooling == "mean" else np.arange(mask.shape[1])[None] == 0
    weight = weight / weight.sum(1, keepdims=True)  # [R T]
    return np.einsum("KRTD,RT->RKD", states, weight).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("encoder", "layers"))
def _states(encoder: Any, params: Any, batch: dict[str, Array], layers: tuple[int, ...]) -> Array:
    """Return the states of the layers, float32 [K R T D]."""
    output = encoder.apply({"params": params}, **batch, output_hidden_states=True)
    return jax.numpy.stack([output.hidden_states[layer] for layer in layers]).astype(jax.numpy.float32)


def _text_ids(tokenizer: Tokenizer, text: str, number: int, config: ModelConfig) -> list[int]:
    ids = tokenizer.encode(text).ids if config.causal else encode(tokenizer, text)["input_ids"][0].tolist()
    if len(ids) <= (0 if config.causal else 2):
        raise InputError(f"text {number} is empty; remove it")
    if len(ids) > config.max_positions:
        raise InputError(f"text {number} has {len(ids)} tokens, over the model's {config.max_positions}; shorten it")
    check_ids(np.array(ids), config.vocab_size)
    return ids
