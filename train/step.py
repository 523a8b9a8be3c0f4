"""One update and one evaluation as pure functions; parallel.py runs them under jit, pmap or a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bertgpt import losses
from bertgpt.losses import Batch, SumWeight
from bertgpt.model.blocks import Model

from . import parameter_groups
from .state import TrainState, step_key

Sums = dict[str, SumWeight]
PACKED = ("position_ids", "pack_ids", "cls_positions")  # additional inputs of a batch with several examples per row
TOKENS = "tokens"  # the metric that counts the real tokens of a global batch
IN_BLOCKS = (("output_logits", False),)  # the losses compute logits over the vocabulary in blocks of rows


class Objective(NamedTuple):
    """A model with its losses and accuracies.

    Attributes:
        model: called with the batch's `inputs` by name.
        inputs: keys of the batch; keys of `PACKED` that the batch has are added.
        losses: (output, batch) -> sums by name; the weighted sum of their means is minimized.
        scores: (output, batch) -> sums of an evaluation: losses and accuracies.
        weights: (loss, weight) pairs; a loss without a weight has weight 1.
        options: (name, value) pairs of further arguments of the model.
        outputs: fields of the model's output that an evaluation keeps.
        apply: replaces `model.apply`, such as with a version that is faster on the device.
    """

    model: Model
    inputs: tuple[str, ...]
    losses: Callable[[Any, Batch], Sums]
    scores: Callable[[Any, Batch], Sums]
    weights: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[str, ...] = ()
    apply: Callable[..., Any] | None = None

    def total(self, values: Mapping[str, Any]) -> Any:
        """The weighted sum of the losses (names that end in `_loss`) among named values."""
        weights = dict(self.weights)
        return sum(weights.get(name, 1) * value for name, value in values.items() if name.endswith("_loss"))


# A function (params, batch, key, axes) -> (gradient, loss sums), such as `gradients` with its options bound.
GradFn = Callable[..., tuple[Any, Sums]]
# A function that turns the GradFn of one device into one that returns the sum over all devices of a strategy.
Distribute = Callable[[GradFn], GradFn]


def single_device(local: GradFn) -> GradFn:
    """The `Distribute` of a single device: return the function unchanged."""
    return local


def bert_objective(model: Model) -> Objective:
    """Masked tokens and next sentences: BERT's pretraining objective."""
    inputs = ("input_ids", "attention_mask", "token_type_ids", "masked_positions")
    return Objective(model, inputs, losses.bert_losses, losses.bert_scores, options=IN_BLOCKS)


def mlm_objective(model: Model) -> Objective:
    """Masked tokens alone."""
    inputs = ("input_ids", "attention_mask", "masked_positions")
    return Objective(model, inputs, losses.mlm_losses, losses.mlm_scores, options=IN_BLOCKS)


def gpt_objective(model: Model) -> Objective:
    """The next token: GPT-1's pretraining objective."""
    return Objective(model, ("input_ids",), losses.gpt_losses, losses.gpt_scores, options=IN_BLOCKS)


def trained(objective: Objective, freeze: str | Sequence[str] | None) -> Objective:
    """An objective for training with `train.freeze`."""
    given = parameter_groups.patterns(freeze)
    if not given:
        return objective
    run = objective.apply or objective.model.apply
    return objective._replace(apply=parameter_groups.without_gradient(run, given))


def apply(objective: Objective, params: Any, batch: Batch, key: Array | None = None) -> Any:
    """The model's output for a batch; with dropout if a key is given."""
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
    """Update the state with one global batch.

    Without dropout, the result does not depend on how the batch is split. Each device and micro-batch has its own
    dropout key.

    Args:
        state: before the update.
        batch: arrays [B ...]; under pmap this device's part.
        objective: model and losses.
        optimizer: computes updates from the gradient.
        accumulate: number of micro-batches that each device's rows are split into.
        distribute: makes `gradients` run on several devices.

    Returns:
        The state after the update, and the batch's mean losses with `loss` (their weighted sum), `grad_norm` (before
        clipping) and `tokens` (see `real_tokens`).
    """
    local = functools.partial(gradients, objective=objective, accumulate=accumulate)
    grads, sums = distribute(local)(state.params, batch, step_key(state))
    tokens = sums.pop(TOKENS).sum
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {name: value.mean() for name, value in sums.items()}
    metrics |= {"loss": objective.total(metrics), "grad_norm": optax.tree.norm(grads), TOKENS: tokens}
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def gradients(
    params: Any, batch: Batch, key: Array, axes: tuple[str, ...] = (), *, objective: Objective, accumulate: int = 1
) -> tuple[Any, Sums]:
    """One device's part of the gradient of the global batch's total loss, and of the losses.

    Args:
        params: all parameters, not a shard.
        batch: this device's rows.
        key: this device's dropout key.
        axes: names of the mapped axes over which the devices are distributed.
        objective: model and losses.
        accumulate: number of micro-batches.

    Returns:
        Gradient and loss sums, with the count of `TOKENS`; their sum over devices is that of the global batch.
    """
    tokens = SumWeight(real_tokens(batch).astype(jnp.float32), jnp.ones(()))
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
        grads, sums = jax.grad(loss, has_aux=True)(params, batch, key)
        return grads, sums | {TOKENS: tokens}
    batches = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(jax.grad(loss, has_aux=True), params, jax.tree.map(lambda x: x[0], batches), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, sums = jax.lax.scan(micro_batch, zeros, (jnp.arange(accumulate), batches))[0]
    return grads, sums | {TOKENS: tokens}


def real_tokens(batch: Batch) -> Any:
    """The number of tokens in a batch that are not padding, as an integer or float scalar of the batch's library."""
    return batch["attention_mask" if "attention_mask" in batch else "loss_mask"].sum()


def normalize_loss_masks(batch: Batch, axes: tuple[str, ...] = ()) -> Batch:
    """Divide each loss mask by its sum over the global batch.

    The sum of the losses over micro-batches and devices is then the global mean. A mask of zeros stays zero.
    """

    def share(mask: Array) -> Array:
        total = mask.astype(jnp.float32).sum()
        total = jax.lax.psum(total, axes) if axes else total
        return mask / jnp.where(total > 0, total, 1)

    return {name: share(value) if name.endswith("loss_mask") else value for name, value in batch.items()}


def eval_step(params: Any, batch: Batch, *, objective: Objective) -> tuple[Sums, dict[str, Array]]:
    """Evaluate one device's rows without dropout.

    Returns:
        (sum, weight) of each loss and accuracy, to be summed over devices; and, if the objective keeps outputs, these
        per row, with each row's `place`.
    """
    output = apply(objective, params, batch)
    sums = objective.scores(output, batch)
    kept = {name: getattr(output, name) for name in objective.outputs}
    return sums, kept | ({"place": batch["place"]} if kept else {})
