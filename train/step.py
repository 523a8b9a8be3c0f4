"""One update and one evaluation, as pure functions: `jit`, `pmap` and a mesh are put around them in parallel.py."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bertgpt import losses
from bertgpt.losses import Batch, SumWeight
from bertgpt.model.blocks import Model

from .state import TrainState, step_key

Sums = dict[str, SumWeight]
PACKED = ("position_ids", "pack_ids", "cls_positions")  # further inputs of a batch whose rows hold several examples
IN_BLOCKS = (("output_logits", False),)  # logits over the vocabulary exist for a block of rows at a time


class Objective(NamedTuple):
    """A model with what it is trained and judged by.

    Attributes:
        model: takes the batch's `inputs` by name.
        inputs: keys of the batch; those of `PACKED` that it has are taken as well.
        losses: (output, batch) -> sums whose means are added and differentiated.
        accuracies: (output, batch) -> further sums of an evaluation.
        weights: (loss, its weight in what is differentiated); 1 for the others.
        options: (name, value) of further arguments of the model.
        outputs: fields of its output that an evaluation keeps.
        apply: `model.apply`, or what serves the device better.
    """

    model: Model
    inputs: tuple[str, ...]
    losses: Callable[[Any, Batch], Sums]
    accuracies: Callable[[Any, Batch], Sums]
    weights: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[str, ...] = ()
    apply: Callable[..., Any] | None = None

    def total(self, values: Mapping[str, Any]) -> Any:
        """The weighted sum of the losses among named values."""
        weights = dict(self.weights)
        return sum(weights.get(name, 1) * value for name, value in values.items() if name.endswith("_loss"))


GradFn = Callable[..., tuple[Any, Sums]]  # `gradients` of one device
Distribute = Callable[[GradFn], GradFn]


def single_device(local: GradFn) -> GradFn:
    """One device has all rows."""
    return local


def bert_objective(model: Model) -> Objective:
    """Masked tokens and next sentence."""
    inputs = ("input_ids", "attention_mask", "token_type_ids", "masked_positions")
    return Objective(model, inputs, losses.bert_losses, losses.bert_accuracies, options=IN_BLOCKS)


def gpt_objective(model: Model) -> Objective:
    """Next token."""
    return Objective(model, ("input_ids",), losses.gpt_losses, losses.gpt_accuracies, options=IN_BLOCKS)


def apply(objective: Objective, params: Any, batch: Batch, key: Array | None = None) -> Any:
    """The model's output for a batch; with dropout where there is a key."""
    inputs = {name: batch[name] for name in (*objective.inputs, *(name for name in PACKED if name in batch))}
    options = dict(objective.options) | {"deterministic": True}
    if key is not None:
        options |= {"deterministic": False, "rngs": {"dropout": key}}
    run = objective.apply or objective.model.apply
    return run({"params": params}, **inputs, **options)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    distribute: Distribute = single_device,
) -> tuple[TrainState, dict[str, Array]]:
    """The update for one global batch; without dropout, whose keys go by device and micro-batch, the same however the
    batch is split.

    Args:
        state: before the update.
        batch: arrays [B ...]; under pmap this device's part.
        objective: what to learn.
        optimizer: what to do with the gradient.
        accumulate: micro-batches that a device works its rows off in, one after the other.
        spread: how `gradients` runs on several devices.

    Returns:
        The state after it, and the batch's mean losses with `loss` (their sum) and `grad_norm` (before clipping).
    """
    local = functools.partial(gradients, objective=objective, accumulate=accumulate)
    grads, sums = distribute(local)(state.params, batch, step_key(state))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {name: value.mean() for name, value in sums.items()}
    metrics |= {"loss": objective.total(metrics), "grad_norm": optax.tree.norm(grads)}
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def gradients(
    params: Any, batch: Batch, key: Array, axes: tuple[str, ...] = (), *, objective: Objective, accumulate: int = 1
) -> tuple[Any, Sums]:
    """One device's part of the gradient of the global batch's summed mean losses, and of the losses.

    Args:
        params: whole.
        batch: this device's rows.
        key: of this device's dropout.
        axes: names of the axes that hold the other devices.
        objective: what to learn.
        accumulate: micro-batches.

    Returns:
        Gradient and losses, to be added over devices.
    """
    batch = normalize_loss_masks(batch, axes)

    def loss(params: Any, batch: Batch, key: Array) -> tuple[Array, Sums]:
        output = apply(objective, params, batch, key)
        sums = objective.losses(output, batch)
        return objective.total({name: value.sum for name, value in sums.items()}), sums

    def micro_batch(total: Any, index_and_batch: tuple[Array, Batch]) -> tuple[Any, None]:
        index, batch = index_and_batch
        added = jax.grad(loss, has_aux=True)(params, batch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, added), None

    if accumulate == 1:
        return jax.grad(loss, has_aux=True)(params, batch, key)
    batches = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(jax.grad(loss, has_aux=True), params, jax.tree.map(lambda x: x[0], batches), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(micro_batch, zeros, (jnp.arange(accumulate), batches))[0]


def normalize_loss_masks(batch: Batch, axes: tuple[str, ...] = ()) -> Batch:
    """Every loss mask over its sum in the global batch, so that a sum of losses, added over micro-batches and devices,
    is the global mean, divided once. A mask that is all zero stays so."""

    def share(mask: Array) -> Array:
        total = mask.astype(jnp.float32).sum()
        total = jax.lax.psum(total, axes) if axes else total
        return mask / jnp.where(total > 0, total, 1)

    return {name: share(value) if name.endswith("loss_mask") else value for name, value in batch.items()}


def eval_step(params: Any, batch: Batch, *, objective: Objective) -> tuple[Sums, dict[str, Array]]:
    """The sums and weights of every loss and accuracy of a device's rows, without dropout, to be added over devices;
    also the outputs that the objective keeps, row by row, with each row's `place`."""
    output = apply(objective, params, batch)
    sums = objective.losses(output, batch) | objective.accuracies(output, batch)
    kept = {name: getattr(output, name) for name in objective.outputs}
    return sums, kept | ({"place": batch["place"]} if kept else {})
