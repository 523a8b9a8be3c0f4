"""What a step costs in floating-point operations, and what a device can do at most."""

from typing import Any

from bertgpt.config import ModelConfig

# Dense bfloat16 operations a second of one device as JAX counts devices, by the start of its name: the makers' data
# sheets (NVIDIA: without sparsity; Google Cloud: per chip, of which a v2 or v3 chip is two devices).
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
    """bfloat16 operations a second of a device; None where it is not known."""
    names = [name for name in PEAKS if device_kind.startswith(name) and device_kind[len(name) : len(name) + 1] in " -"]
    return PEAKS[max(names, key=len)] if names else None


def forward_flops(config: ModelConfig, rows: int, length: int, vocabulary_positions: int) -> int:
    """Operations of the products in one forward pass; a multiplication with its addition counts as 2.

    Attention is counted in full, causal or not; heads over classes are left out, being thousands of times smaller.

    Args:
        config: the model.
        rows: sequences.
        length: T, padding included.
        vocabulary_positions: of each row, those that get logits over the vocabulary.
    """
    width, ffn, vocabulary = config.hidden_size, config.mlp_size, config.vocab_size
    block = 2 * length * (4 * width * width + 2 * width * ffn) + 4 * length * length * width
    head = 2 * vocabulary_positions * width * (vocabulary + (0 if config.causal else width))
    return rows * (config.num_layers * block + head)


def step_flops(config: ModelConfig, batch: dict[str, Any]) -> int:
    """Operations of one update: the backward pass is twice the forward pass, whatever is computed again to save memory.

    Args:
        config: the model.
        batch: arrays, or their shapes, by name.
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
