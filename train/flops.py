"""Floating-point operations of a step, and the peak rate of devices."""

from typing import Any

from bertgpt.config import ModelConfig

# Dense bfloat16 operations per second of one JAX device, added up in float32 as XLA does, by the start of the device's
# name; the longest name that fits counts. None: another chip, whose name begins like one that is known. V100 and T4 are
# missing: they have no bfloat16 units. Vendors often give a rate with sparsity, which is twice the one here.
PEAKS: dict[str, float | None] = {
    # nvidia.com/en-us/data-center: pages a100, a10-tensor-core-gpu, a30-tensor-core-gpu, a40, l4, l40, l40s
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,  # its data sheet, at aws.amazon.com/ec2/instance-types/g5
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L40S": 362.05e12,
    # nvidia.com/en-us/data-center: pages h100, h200, grace-hopper-superchip; H100 PCIe: white paper of the H100
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    # nvidia.com/en-us/data-center: pages hgx (36 PFLOPS for 8 GPUs, sparse), gb200-nvl72, gb300-nvl72 (360 for 72)
    "NVIDIA B200": 2250e12,
    "NVIDIA B300": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA GB300": 2500e12,
    # NVIDIA's white papers of the architectures: Ampere GA102, Ada, RTX Blackwell, RTX PRO Blackwell
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA RTX 6000 Ada": 364.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop": None,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "NVIDIA GeForce RTX 5090 D": None,
    "NVIDIA GeForce RTX 5090 Laptop": None,
    "NVIDIA RTX PRO 6000 Blackwell Workstation": 503.8e12,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q": 438.9e12,
    "NVIDIA RTX PRO 6000 Blackwell Server": 480e12,  # 4 times its float32 rate (its data sheet), as of the other two
    # amd.com/en/products/accelerators/instinct: data sheets of MI250X (two devices), MI300, MI325 and MI350 series
    "AMD Instinct MI250X": 191.5e12,
    "AMD Instinct MI300A": 980.6e12,
    "AMD Instinct MI300X": 1307.4e12,
    "AMD Instinct MI325": 1307.4e12,  # both spellings occur, with and without X
    "AMD Instinct MI325X": 1307.4e12,
    "AMD Instinct MI350": 2306.9e12,
    "AMD Instinct MI350X": 2306.9e12,
    "AMD Instinct MI355": 2516.6e12,
    "AMD Instinct MI355X": 2516.6e12,
    # docs.cloud.google.com/tpu/docs: pages v2, v3, v4, v5e, v5p, v6e, tpu7x give the rate of a chip, which is two JAX
    # devices for v2, v3 and 7x
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": None,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 operations per second of a device; None if unknown, or if it is a part of a GPU (MIG)."""
    names = [name for name in PEAKS if device_kind.startswith(name) and device_kind[len(name) : len(name) + 1] in " -"]
    return PEAKS[max(names, key=len)] if names and " MIG " not in device_kind else None


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
