"""Frozen parameters, and learning rates that fall with depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY
from test_devices import initial_params, make_batch, make_objective

import bertgpt
from bertgpt.errors import InputError
from bertgpt.model.inputs import example_ids
from train import parallel, parameter_groups, step
from train.optimizers import make_optimizer, muon_mask
from train.sections import OptimizerSection, ParallelSection
from train.state import create_state

BERT, GPT = bertgpt.presets.bert_tiny(**TINY), bertgpt.presets.gpt1(**TINY)  # of two blocks


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), example_ids(type(model).__name__))["params"]


def chosen(mask) -> set[str]:
    """The paths of the arrays that a mask chooses, with the last name left out."""
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {"/".join(parameter_groups.keys(path)[:-1]) for path, value in leaves if value}


def test_embeddings_are_their_tables_and_their_layer_norm():
    params = shapes(bertgpt.BertForPreTraining(BERT))
    names = {f"bert/embeddings/{name}" for name in ("token", "position", "segment", "norm")}
    assert chosen(parameter_groups.frozen(params, ["embeddings"])) == names
    params = shapes(bertgpt.OpenAIGPTForSequenceClassification(GPT))
    assert chosen(parameter_groups.frozen(params, ["embeddings"])) == {"transformer/token", "transformer/position"}


@pytest.mark.parametrize(("pattern", "blocks"), [("encoder:1", [0]), ("encoder:2", [0, 1]), ("*/block_1/*", [1])])
def test_encoder_names_the_first_blocks_and_a_pattern_any_path(pattern, blocks):
    for model in (bertgpt.BertForMaskedLM(BERT), bertgpt.OpenAIGPTLMHeadModel(GPT)):
        found = chosen(parameter_groups.frozen(shapes(model), [pattern]))
        prefix = "bert" if model.config.architecture == "bert" else "transformer"
        assert {name.split("/")[2] for name in found} == {f"block_{number}" for number in blocks}
        assert {name.split("/")[0] for name in found} == {prefix}
        assert len(found) == 8 * len(blocks)  # four dense layers of attention, two of the feed-forward part, two norms


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["embedings"], "train.freeze: embedings names no parameter of this model; give embeddings, encoder:N"),
        (["embeddings", "bert/stack/block_2/*"], "train.freeze: bert/stack/block_2/\\* names no parameter"),
        (["encoder:0"], "train.freeze: encoder:0 names no parameter"),
        (["encoder:3"], "train.freeze: encoder:3 names 3 blocks, but the model has 2"),
        (["*"], "train.freeze: \\* leaves no parameter to train"),
    ],
)
def test_a_pattern_that_names_nothing_or_all_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        parameter_groups.frozen(shapes(bertgpt.BertForMaskedLM(BERT)), given)


def test_a_single_pattern_need_not_be_a_list():
    assert parameter_groups.patterns("embeddings") == ("embeddings",)
    assert parameter_groups.patterns(["embeddings", "encoder:1"]) == ("embeddings", "encoder:1")
    assert parameter_groups.patterns(None) == ()


@functools.cache
def after_steps(freeze, strategy="jit", accumulate=1, **changes):
    """The parameters before and after three steps, the last metrics, and the number of arrays in the state."""
    objective = make_objective("bert")
    section = OptimizerSection(learning_rate=0.01, weight_decay=0.1, **changes)
    optimizer, batch = make_optimizer(section, 9, freeze), make_batch("bert")
    params = jax.tree.map(np.array, initial_params(objective))
    params["bert"]["pooler"]["bias"][:] = -0.0  # adding 0 would change its bits
    bound = functools.partial(step.train_step, objective=step.trained(objective, freeze), optimizer=optimizer)
    place = parallel.make_strategy(ParallelSection(strategy))
    train, _ = parallel.compile_steps(place, bound, functools.partial(step.eval_step, objective=objective))
    state = place.put_state(create_state(objective.model, optimizer, 0, params))
    for _ in range(3):
        state, metrics = train(state, place.put_batch(batch))
    found = jax.device_get(place.to_checkpoint(state))
    return params, found.params, metrics, len(jax.tree.leaves(found.opt_state))


@pytest.mark.parametrize(
    ("strategy", "accumulate", "name"),
    [("jit", 1, "adamw"), ("mesh", 1, "adamw"), ("pmap", 1, "adamw"), ("jit", 2, "adamw"), ("mesh", 1, "muon")],
)
def test_frozen_arrays_keep_every_bit_and_the_others_move(strategy, accumulate, name):
    freeze = ("embeddings", "bert/pooler/*")
    before, after, metrics, arrays = after_steps(freeze, strategy, accumulate, name=name)
    frozen = parameter_groups.frozen(before, freeze)
    for old, new, is_frozen in zip(*map(jax.tree.leaves, (before, after, frozen)), strict=True):
        assert (old.tobytes() == new.tobytes()) == is_frozen
    _, _, whole, all_arrays = after_steps(None, strategy, accumulate, name=name)
    assert arrays == all_arrays - 2 * sum(jax.tree.leaves(frozen))  # without the two moments of each
    assert np.max(metrics["grad_norm"]) < np.max(whole["grad_norm"])  # under pmap, of each device


def test_gradients_of_frozen_parameters_are_not_computed():
    objective, batch = make_objective("bert"), make_batch("bert")
    params, key = initial_params(objective), jax.random.key(0)

    def products(freeze):
        trained = step.trained(objective, freeze)
        compiled = jax.jit(functools.partial(step.gradients, objective=trained)).lower(params, batch, key).compile()
        return compiled.cost_analysis()["flops"]

    assert products(("embeddings", "encoder:1")) < 0.6 * products(None)  # the whole backward pass below the heads


def test_rates_fall_with_depth():
    objective = make_objective("bert")
    params = initial_params(objective)
    grads = jax.tree.map(jnp.ones_like, params)
    flat, layered = (
        make_optimizer(OptimizerSection(learning_rate=1.0, schedule="constant", weight_decay=0, layer_decay=decay), 9)
        for decay in (None, 0.5)
    )
    plain, _ = flat.update(grads, flat.init(params), params)
    updates, _ = layered.update(grads, layered.init(params), params)
    factors = jax.tree.map(lambda a, b: float((a / b).ravel()[0]), updates, plain)
    expected = jax.tree_util.tree_map_with_path(  # one block: embeddings 1/4, the block 1/2, pooler and heads 1
        lambda path, _: {"embeddings": 0.25, "stack": 0.5}.get(path[1].key, 1.0), factors
    )
    assert factors == expected


def test_the_depth_counts_all_blocks_also_if_the_upper_ones_are_frozen():
    model = bertgpt.OpenAIGPTLMHeadModel(GPT)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes(model))
    section = OptimizerSection(learning_rate=1.0, schedule="constant", weight_decay=0, layer_decay=0.5)
    optimizer = make_optimizer(section, 9, ["*/block_1/*"])
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    part = updates["transformer"]["stack"]
    assert float(abs(part["block_1"]["attention"]["out"]["bias"]).max()) == 0
    ratio = part["block_0"]["attention"]["out"]["bias"][0] / updates["transformer"]["token"]["embedding"][0, 0]
    np.testing.assert_allclose(ratio, 2, rtol=1e-5)
    np.testing.assert_allclose(updates["transformer"]["token"]["embedding"][0, 0], -0.125, rtol=1e-3)


def test_muon_is_for_the_kernels_of_blocks_alone():
    names = chosen(muon_mask(shapes(bertgpt.BertForPreTraining(BERT))))
    attention = {f"attention/{name}" for name in ("query", "key", "value", "out")}
    kernels = attention | {"feed_forward/up", "feed_forward/down"}
    assert names == {f"bert/stack/block_{number}/{kernel}" for number in (0, 1) for kernel in kernels}
    mask = muon_mask(shapes(bertgpt.BertForPreTraining(BERT)))
    assert sum(jax.tree.leaves(mask)) == len(names)  # no bias among them


def test_an_optimizer_that_uses_none_of_these_has_the_state_it_had():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    older = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.01, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.identity(),
        optax.scale_by_learning_rate(lambda count: 0.1),
    )
    for schedule in ("linear", "wsd"):
        new = make_optimizer(OptimizerSection(schedule=schedule), 10).init(params)
        assert jax.tree.structure(new) == jax.tree.structure(older.init(params))
