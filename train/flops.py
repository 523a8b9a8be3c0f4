"""Floating-point operations of a step, and the peak rate of devices."""

from typing import Any

from bertgpt.config import ModelConfig

# Dense bfloat16 operations per second of one JAX device, by the start of the device's name. Sources: the vendors' data
# sheets. NVIDIA: without sparsity. Google Cloud: per chip; a v2 or v3 chip is two JAX devices.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v6 lite": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 operations per second of a device; None if unknown."""
    names = [name for name in PEAKS if device_kind.startswith(name) and device_kind[len(name) : len(name) + 1] in " -"]
    return PEAKS[max(names, key=len)] if names else None


def forward_flops(config: ModelConfig, rows: int, length: int, vocabulary_positions: int) -> int:
    """Floating-point operations of the matrix products in one forward pass; a multiply-add counts as 2.

    Attention is counted in full, even if it is causal. Classification heads are ignored: they are thousands of times
    smaller.

    Args:
        config: the model.
        rows: sequences.
        length: T, padding included.
        vocabulary_positions: positions per row that get logits over the vocabulary.
    """
    width, ffn, vocabulary = config.hidden_size, config.mlp_size, config.vocab_size
    block = 2 * length * (4 * width * width + 2 * width * ffn) + 4 * length * length * width
    head = 2 * vocabulary_positions * width * (vocabulary + (0 if config.causal else width))
    return rows * (config.num_layers * block + head)


def step_flops(config: ModelConfig, batch: dict[str, Any]) -> int:
    """Floating-point operations of one update. The backward pass counts twice the forward pass.

    Activations that are recomputed are not counted.

    Args:
        config: the model.
        batch: arrays or `jax.ShapeDtypeStruct`s, by name.
    """
    *rows, length = batch["input_ids"].shape
    count = 1
    for size in rows:
        count *= size
    if "masked_positions" in batch:
        positions = batch["masked_positions"].shape[1]
    else:
        per_token = any(
            name in batch and batch[name].shape == batch["input_ids"].shape for name in ("labels", "lm_labels")
        )
        positions = length if config.causal and per_token else 0
    return 3 * forward_flops(config, count, length, positions)
