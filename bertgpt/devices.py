"""The device that a program is made for; the fastest form of some operations depends on it."""

from typing import Any

import jax


def target_device() -> Any:
    """Return the device that JAX computes on by default."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, its kind, or None
    return chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
