"""The recipes of docs/recipes.md run, and do what they say."""

import dataclasses
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY
from flax import nnx, traverse_util

import bertgpt

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
FIRST, *SECTIONS = PAGE.split("\n## ")
RECIPES = {text.split("\n")[0]: "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in SECTIONS}
(START,) = re.findall(r"```python\n(.*?)```", FIRST, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wordpiece):
    """Tiny models whose parameters are far from zero, so that every change shows."""
    folder = tmp_path_factory.mktemp("recipes")
    model = bertgpt.BertForMaskedLM(bertgpt.presets.bert_tiny(**TINY | {"vocab_size": 200, "max_positions": 64}))
    for seed, name in enumerate(("bert", "teacher")):
        params = model.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]
        params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
        bertgpt.save_pretrained(folder / name, model, params, wordpiece)
    return folder


@pytest.fixture(scope="module")
def start(folder):
    """The names that the page's first code defines."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(START, "docs/recipes.md", "exec"), names)
    return names


@pytest.fixture
def names(request, start, folder, monkeypatch):
    """What is defined after the recipe that the test is about."""
    monkeypatch.chdir(folder)
    found = dict(start)
    if request.param != "Adapters":  # a compiled function does not see a method that is intercepted later
        found["loss"] = jax.jit(start["loss"], static_argnames="model")
    exec(compile(RECIPES[request.param], f"docs/recipes.md: {request.param}", "exec"), found)
    return found


CHECKED = set()


def recipe(name):
    CHECKED.add(name)
    return pytest.mark.parametrize("names", [name], indirect=True, ids=[name])


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short(name):
    assert 0 < len([line for line in RECIPES[name].splitlines() if line.strip()]) < 15


@recipe("Another attention function")
def test_a_token_attends_to_its_neighbours_only(names):
    params, model, ids, local = (names[name] for name in ("params", "model", "ids", "local"))
    length = ids.shape[1]
    near = abs(np.arange(length)[:, None] - np.arange(length)[None]) <= 2
    allowed = (near[None] & (names["batch"]["attention_mask"] != 0)[:, None]) | np.eye(length, dtype=bool)[None]
    expected = model.apply({"params": params}, ids, allowed).logits
    found = local.apply({"params": params}, ids, names["batch"]["attention_mask"]).logits
    real = names["batch"]["attention_mask"] != 0
    assert_close(found[real], expected[real])
    assert_close(
        local.apply({"params": params}, ids).logits,
        model.apply({"params": params}, ids, near[None].repeat(len(ids), 0)).logits,
    )
    with pytest.raises(bertgpt.InputError, match="output_attentions needs attention probabilities"):
        local.apply({"params": params}, ids, output_attentions=True)


@recipe("LoRA")
def test_lora_begins_at_the_model_and_trains_low_rank_matrices(names):
    assert len(names["paths"]) == 2 * names["model"].config.num_layers
    assert_close(names["value"], names["loss"](names["params"]))
    gradient = names["gradient"]
    assert all(abs(x).max() > 0 for x in gradient["up"].values())
    moved = {"down": names["down"], "up": jax.tree.map(lambda x: -0.1 * x, gradient["up"])}
    changed, before = flat(names["merged"](moved)), flat(names["params"])
    for path, kernel in changed.items():
        rank = np.linalg.matrix_rank(np.asarray(kernel - before[path]), tol=1e-7) if path in names["paths"] else 0
        assert rank == (4 if path in names["paths"] else 0)
        assert path in names["paths"] or (kernel == before[path]).all()
    assert names["loss"](names["merged"](moved)) < names["value"]


@recipe("Adapters")
def test_adapters_begin_without_effect_and_every_layer_has_one(names):
    assert_close(names["value"], names["loss"](names["params"]))
    assert all(abs(part["up"]).max() > 0 for part in names["gradient"].values())
    moved = jax.tree.map(lambda x, slope: x - 0.5 * slope, names["adapters"], names["gradient"])
    assert names["adapted_loss"](moved) < names["value"]
    assert len(names["gradient"]) == names["model"].config.num_layers


@recipe("Freezing")
def test_frozen_parameters_stay_and_the_others_move(names):
    before, after = flat(names["params"]), flat(names["tuned"])
    for path in before:
        assert (before[path] == after[path]).all() == ("embeddings" in path), path


@recipe("Head ablation")
def test_a_head_without_its_rows_has_no_effect(names):
    config = names["model"].config
    assert names["importance"].shape == (config.num_layers, config.num_heads)
    params, ids, width = names["without"](1, 0), names["ids"], names["width"]

    def around(call, arguments, options, context):  # the head's output is set to zero in the model instead
        if context.module.path[-2:] == ("attention", "out") and "block_1" in context.module.path:
            arguments = (arguments[0].at[..., :width].set(0),)
        return call(*arguments, **options)

    with nn.intercept_methods(around):
        expected = names["model"].apply({"params": names["params"]}, ids).logits
    assert_close(names["model"].apply({"params": params}, ids).logits, expected)
    assert_close(names["importance"][1, 0], names["loss"](params) - names["loss"](names["params"]))


@recipe("Attention maps")
def test_the_maps_are_drawn(names, folder):
    config = names["model"].config
    assert names["axes"].shape == (config.num_layers, config.num_heads)
    assert names["tokens"][0] == "[CLS]"
    assert names["tokens"][-1] == "[SEP]"
    for layer in range(config.num_layers):
        drawn = names["axes"][layer, 1].images[0].get_array()
        assert_close(drawn.sum(1), np.ones(len(names["tokens"])))
        assert_close(drawn, names["attentions"][layer][0, 1, : len(names["tokens"]), : len(names["tokens"])])
    assert (folder / "attention.png").stat().st_size > 1000


@recipe("A linear probe")
def test_a_probe_reads_the_state_of_its_layer(names):
    options = {"output_hidden_states": True}
    output = names["model"].apply(
        {"params": names["params"]}, names["ids"], names["batch"]["attention_mask"], **options
    )
    assert_close(names["states"], output.hidden_states[1][:, 0])
    stop = jax.eval_shape(lambda: names["encoder"].init(jax.random.key(0), names["ids"]))["params"]["stack"]
    assert list(stop) == ["block_0"]
    assert names["probe_loss"](names["probe"]) < 0.9 * np.log(2)


@recipe("Gradient saliency")
def test_saliency_is_the_slope_of_the_log_probability(names):
    score, embeds = names["log_probability"], names["embeds"]
    assert names["saliency"].shape == names["ids"].shape
    assert_close(-score(embeds) / names["batch"]["loss_mask"].sum(), names["loss"](names["params"]))
    step = 1e-3
    slope = (score(embeds * (1 + step)) - score(embeds * (1 - step))) / (2 * step)
    np.testing.assert_allclose(names["saliency"].sum(), slope, rtol=2e-2, atol=2e-2)


@recipe("Per-example gradients")
def test_per_example_gradients_are_those_of_each_row_alone(names):
    row = {name: value[3:4] for name, value in names["batch"].items()}
    alone = jax.grad(names["loss"])(names["params"], batch=row)
    for path, value in flat(alone).items():
        assert_close(flat(names["gradients"])[path][3], value)
    assert_close(names["norms"][3], optax.tree.norm(alone), 1e-4)
    parts = [
        jax.tree.map(lambda x, row=row: x[row] * min(1, 1 / names["norms"][row]), names["gradients"])
        for row in range(8)
    ]
    summed = jax.tree.map(lambda *rows: sum(rows), *parts)
    for path, value in flat(summed).items():
        assert_close(flat(names["clipped"])[path], value)


@recipe("Distillation")
def test_a_student_moves_towards_its_teacher(names):
    moved = jax.tree.map(lambda x, slope: x - 0.1 * slope, names["start"], names["gradient"])
    assert names["distillation_loss"](moved) < names["value"]
    assert names["student"].config.num_layers == 1
    entropy = -(names["targets"] * jnp.log(names["targets"])).sum(-1)
    mask = names["batch"]["loss_mask"]
    assert names["value"] > 4 * (entropy * mask).sum() / mask.sum()


@recipe("An ensemble")
def test_each_member_of_an_ensemble_is_the_model_alone(names):
    member = jax.tree.map(lambda x: x[2], names["members"])
    value, gradient = jax.value_and_grad(names["loss"])(member)
    assert_close(names["values"][2], value)
    for path, expected in flat(gradient).items():
        assert_close(flat(names["gradients"])[path][2], expected)
    assert_close(names["mean"].sum(-1), np.ones(names["ids"].shape))
    expected = jax.nn.softmax(names["model"].apply({"params": member}, names["ids"]).logits)
    assert_close(names["probabilities"][2], expected)
    assert len({float(value) for value in names["values"]}) == 3


@recipe("Your own mesh")
def test_a_mesh_gives_the_gradient_of_one_device(names):
    assert names["mesh"].axis_types == (jax.sharding.AxisType.Explicit,)
    assert len(names["rows"]["input_ids"].addressable_shards) == 8
    value, gradient = jax.value_and_grad(names["loss"])(names["params"])
    assert_close(names["value"], value)
    for path, expected in flat(gradient).items():
        assert_close(flat(names["gradient"])[path], expected)


@recipe("Flax NNX")
def test_the_nnx_module_has_the_same_gradient(names):
    value, gradient = jax.value_and_grad(names["loss"])(names["params"])
    assert_close(names["value"], value)
    found, trained, before = (
        flat(tree) for tree in (nnx.to_pure_dict(names["gradient"]), names["trained"], names["params"])
    )
    assert trained.keys() == before.keys()
    for path, expected in flat(gradient).items():
        assert_close(found[path], expected)
        assert 0 < abs(trained[path] - before[path]).max() < 2e-4  # Adam moves by its learning rate, 1e-4


def test_every_recipe_is_checked():
    assert set(RECIPES) == CHECKED


# Explicit axes, beyond the recipe.


@pytest.mark.parametrize("name", ["BertForPreTraining", "OpenAIGPTLMHeadModel"])
def test_losses_in_blocks_and_packed_rows_work_on_a_mesh_of_explicit_axes(name):
    sizes = {**TINY, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    bert = name.startswith("Bert")
    model = getattr(bertgpt, name)(bertgpt.presets.bert_tiny(**sizes) if bert else bertgpt.presets.gpt1(**sizes))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (8, 12)).astype(np.int32)
    packs = np.repeat([[1] * 7 + [2] * 5], 8, 0).astype(np.int32)
    inputs = {"input_ids": ids, "pack_ids": packs, "position_ids": np.tile(np.r_[0:7, 0:5], (8, 1)).astype(np.int32)}
    labels = rng.integers(0, 64, (8, 3 if bert else 12)).astype(np.int32)
    if bert:
        inputs |= {"masked_positions": rng.integers(1, 12, (8, 3)), "cls_positions": np.tile([[0, 7]], (8, 1))}
    targets = {"labels": labels, "loss_mask": (rng.random(labels.shape) < 0.7).astype(np.float32)}
    params = model.init(jax.random.key(0), ids)["params"]

    def losses(params, batch):
        output = model.apply({"params": params}, **batch["inputs"], output_logits=False)
        logits = output.mlm_logits if bert else output.logits
        loss, right = bertgpt.losses.loss_and_accuracy(logits, batch["labels"], batch["loss_mask"])
        return bertgpt.losses.cross_entropy(logits, batch["labels"], batch["loss_mask"]).mean(), (loss, right)

    run = jax.jit(jax.value_and_grad(losses, has_aux=True))
    batch = jax.tree.map(lambda x: x.astype(np.int32) if x.dtype.kind == "i" else x, targets | {"inputs": inputs})
    expected = run(params, batch)
    mesh = jax.make_mesh((4, 2), ("data", "other"))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
    with jax.set_mesh(mesh):
        everywhere, rows = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",)))
        found = run(jax.device_put(params, everywhere), jax.device_put(batch, rows))
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), np.asarray(b)), found, expected)


def test_generation_and_embeddings_use_the_models_attention_function(start):
    def nothing(query, key, value, mask):
        return jnp.zeros_like(query)

    gpt = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**TINY))
    params = gpt.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    ids, without = np.arange(6)[None], gpt.clone(attention=nothing)
    found, usual = (bertgpt.generate(model, params, ids, 2) for model in (without, gpt))
    logits = jax.jit(lambda ids: without.apply({"params": params}, ids).logits)(found)
    np.testing.assert_array_equal(found[:, 6:], logits[:, 5:-1].argmax(-1))
    assert (found != usual).any()
    given = start["model"], start["params"], start["tokenizer"], ["some text"]
    changed = bertgpt.embed(start["model"].clone(attention=nothing), *given[1:])
    assert abs(changed - bertgpt.embed(*given)).max() > 0.1
    assert dataclasses.is_dataclass(start["model"])
