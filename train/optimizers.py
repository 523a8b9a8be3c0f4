"""Adam and LAMB as in BERT and GPT-1, their learning rate schedules, and the weight decay mask."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .sections import OptimizerSection

DECAYED = ("kernel", "embedding")  # matrices; biases and LayerNorm gains are not decayed (both papers' code)


def warmup_steps(section: OptimizerSection, steps: int) -> int:
    """The number of warm-up updates in a run of `steps` updates."""
    return section.warmup_steps or round(section.warmup_fraction * steps)


def make_schedule(section: OptimizerSection, steps: int, library: Any = jnp) -> optax.Schedule:
    """The learning rate at update 0, 1, 2, ...: linear warm-up from 0, then constant, or linear or cosine decay to 0 at
    `steps`.

    Both decays count from update 0, not from the end of the warm-up, as in the released code (optimization.py of
    google-research/bert, opt.py of openai/finetune-transformer-lm).

    Args:
        section: the schedule's settings.
        steps: updates of the run.
        library: jax.numpy for use inside a step; numpy for float32 values without a computation on the device, equal to
            those of a step up to rounding.
    """
    warmup = warmup_steps(section, steps)

    def schedule(count: Any) -> Array:
        count = library.asarray(count, library.float32)
        done = library.clip(count / steps, 0, 1)
        decay = {
            "linear": 1 - done,
            "cosine": 0.5 * (1 + library.cos(math.pi * done)),
            "constant": library.ones_like(done),
        }
        warm = library.minimum(1, count / max(1, warmup))
        return section.learning_rate * library.where(count < warmup, warm, decay[section.schedule])

    return schedule


def decay_mask(params: Any) -> Any:
    """A tree like `params`: True for parameters with weight decay (kernels and embeddings), else False."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_optimizer(section: OptimizerSection, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay, the trust ratio (LAMB only), then the learning rate.

    Sources: Devlin et al. 2019, A.2; Radford et al. 2018, 4.1; You et al. 2020 (LAMB), with lamb_optimizer.py of
    google-research/albert, which excludes the same parameters from the trust ratio as from weight decay.
    """
    adam = optax.scale_by_adam if section.bias_correction else scale_by_uncorrected_adam
    return optax.chain(
        optax.clip_by_global_norm(section.clip_norm) if section.clip_norm else optax.identity(),
        adam(b1=section.b1, b2=section.b2, eps=section.eps),
        optax.add_decayed_weights(section.weight_decay, mask=decay_mask),
        scale_decayed_by_trust_ratio() if section.name == "lamb" else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(section, steps)),
    )


def scale_decayed_by_trust_ratio() -> optax.GradientTransformation:
    """Scale each update of a decayed parameter by |parameter| / |update|, or by 1 if either norm is 0.

    Biases start at 0 and LayerNorm gains stay near 1, so scaling to their own norm would hardly move them. The state is
    that of `optax.scale_by_trust_ratio`, so older checkpoints can be resumed (`optax.masked` has another state).
    """
    trust = optax.scale_by_trust_ratio()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled, state = trust.update(updates, state, params)
        chosen = jax.tree.map(lambda decayed, new, old: new if decayed else old, decay_mask(params), scaled, updates)
        return chosen, state

    return optax.GradientTransformation(trust.init, update)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, as in google-research/bert (AdamWeightDecayOptimizer).

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  update = m / (sqrt(v) + eps)
    """

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1=b1, b2=b2, eps=eps).init, update)
