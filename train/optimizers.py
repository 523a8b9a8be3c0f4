"""Adam and LAMB as in BERT and GPT-1, Lion and Muon, their learning rate schedules, and the weight decay mask."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

from bertgpt.errors import InputError

from . import parameter_groups
from .sections import OptimizerSection

DECAYED = ("kernel", "embedding")  # matrices; biases and LayerNorm gains are not decayed (both papers' code)
MUON_MOMENTUM = 0.95  # github.com/KellerJordan/Muon
MUON_SCALE = 0.2  # the root mean square of an Adam update, on average (Liu et al. 2025, arXiv 2502.16982, 2.2)


def warmup_steps(section: OptimizerSection, steps: int) -> int:
    """The number of warm-up updates in a run of `steps` updates."""
    return section.warmup_steps or round(section.warmup_fraction * steps)


def make_schedule(section: OptimizerSection, steps: int, library: Any = jnp) -> optax.Schedule:
    """The learning rate at update 0, 1, 2, ...: linear warm-up from 0, then constant, or a decay that ends at `steps`
    with `final_fraction` of the peak.

    linear and cosine count from update 0, not from the end of the warm-up, as in the released code (optimization.py of
    google-research/bert, opt.py of openai/finetune-transformer-lm). wsd (warmup, stable, decay) is constant up to the
    last `decay_fraction` of the steps, in which it falls as 1 - sqrt(share of these steps) (Haegele et al. 2024, arXiv
    2405.18392).

    Args:
        section: the schedule's settings.
        steps: updates of the run.
        library: jax.numpy for use inside a step; numpy for float32 values without a computation on the device, equal to
            those of a step up to rounding.

    Raises:
        InputError: wsd has no room for warm-up and decay.
    """
    warmup = warmup_steps(section, steps)
    decay_steps = max(1, round(section.decay_fraction * steps))
    if section.schedule == "wsd" and warmup + decay_steps > steps:
        raise InputError(
            f"optimizer.schedule is wsd: the warm-up takes {warmup:,} updates and the decay {decay_steps:,}, together "
            f"more than train.steps {steps:,}; lower optimizer.warmup_steps (or warmup_fraction) or decay_fraction"
        )

    def schedule(count: Any) -> Array:
        count = library.asarray(count, library.float32)
        done = library.clip(count / steps, 0, 1)
        decay_done = library.clip((count - (steps - decay_steps)) / decay_steps, 0, 1)
        decay = {
            "linear": 1 - done,
            "cosine": 0.5 * (1 + library.cos(math.pi * done)),
            "constant": library.ones_like(done),
            "wsd": 1 - library.sqrt(decay_done),
        }
        decayed = section.final_fraction + (1 - section.final_fraction) * decay[section.schedule]
        warm = library.minimum(1, count / max(1, warmup))
        return section.learning_rate * library.where(count < warmup, warm, decayed)

    return schedule


def decay_mask(params: Any) -> Any:
    """A tree like `params`: True for parameters with weight decay (kernels and embeddings), else False."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_optimizer(
    section: OptimizerSection, steps: int, freeze: str | Sequence[str] | None = None
) -> optax.GradientTransformation:
    """Clipping by global norm, the direction (Adam, Lion or Muon), decoupled weight decay, the trust ratio (LAMB only),
    the learning rate, then its decay by depth. Frozen parameters have no state and no update.

    Sources: Devlin et al. 2019, A.2; Radford et al. 2018, 4.1; You et al. 2020 (LAMB), with lamb_optimizer.py of
    google-research/albert, which excludes the same parameters from the trust ratio as from weight decay.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(section.clip_norm) if section.clip_norm else optax.identity(),
        direction(section),
        optax.add_decayed_weights(section.weight_decay, mask=decay_mask),
        scale_decayed_by_trust_ratio() if section.name == "lamb" else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(section, steps)),
    )
    if patterns := parameter_groups.patterns(freeze):
        parts = {"frozen": optax.set_to_zero(), "trained": optimizer}
        optimizer = optax.partition(
            parts, lambda params: named(parameter_groups.frozen(params, patterns), "frozen", "trained")
        )
    return optimizer if section.layer_decay is None else optax.chain(optimizer, scale_by_depth(section.layer_decay))


def direction(section: OptimizerSection) -> optax.GradientTransformation:
    """The direction of an update before weight decay: Adam's, Lion's (Chen et al. 2023, arXiv 2302.06675) or Muon's."""
    if section.name == "lion":
        return optax.scale_by_lion(b1=section.b1, b2=section.b2)
    make = optax.scale_by_adam if section.bias_correction else scale_by_uncorrected_adam
    adam = make(b1=section.b1, b2=section.b2, eps=section.eps)
    if section.name != "muon":
        return adam
    return optax.partition(
        {"muon": scale_by_muon(), "adam": adam}, lambda params: named(muon_mask(params), "muon", "adam")
    )


def named(mask: Any, yes: str, no: str) -> Any:
    """A tree of True and False -> the same tree with the names of two groups."""
    return jax.tree.map(lambda chosen: yes if chosen else no, mask)


def muon_mask(params: Any) -> Any:
    """A tree like `params`: True for the kernels of blocks. Embeddings, heads and vectors are for Adam."""

    def is_kernel(path: Any, _: Any) -> bool:
        names = parameter_groups.keys(path)
        return parameter_groups.block_of(names) >= 0 and names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def scale_by_muon() -> optax.GradientTransformation:
    """Muon's orthogonal direction for kernels [I O] (Jordan et al. 2024), times 0.2 sqrt(max(I, O)) (Liu et al. 2025).

    With this factor an update is about as large as Adam's, so both share learning rate and weight decay.
    """

    def axes(updates: Any) -> Any:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), updates)

    def as_large_as_adam(update: Array, _: Any) -> Array:
        return update * (MUON_SCALE * max(update.shape) ** 0.5)

    muon = contrib.scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=axes)
    return optax.chain(muon, optax.stateless_with_tree_map(as_large_as_adam))


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiply each update by decay^(L + 1 - depth): 1 for heads, less for each block below, least for embeddings.

    Source: layer-wise learning rates as in Clark et al. 2020 (ELECTRA) and Bao et al. 2022 (BEiT), whose exponents
    these are.
    """

    def update(updates: Any, params: Any = None) -> Any:
        paths = [parameter_groups.keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        blocks = max(map(parameter_groups.block_of, paths)) + 1

        def scaled(path: Any, x: Array) -> Array:
            return x * decay ** (blocks + 1 - parameter_groups.depth(parameter_groups.keys(path), blocks))

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(update)


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
