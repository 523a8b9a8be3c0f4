"""One step gives one update, however the batch is split: by jit, pmap, a mesh or accumulation."""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

import bertgpt
from bertgpt.data.pretraining.packing import assemble, lay_out
from train import parallel, step
from train.fast_dense import fast_apply
from train.optimizers import make_optimizer
from train.sections import OptimizerSection, ParallelSection
from train.state import create_state

MASKED = np.array(
    [0, 1, 4, 2, 0, 3, 4, 1]
)  # counted positions of each of 8 rows: of a device, or of a micro-batch, none
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
STRATEGIES = {
    "jit": (parallel.Jit, 1),
    "jit, accumulated": (parallel.Jit, 4),
    "pmap over 2, accumulated": (lambda: parallel.Pmap(jax.devices()[:2]), 2),
    "pmap over 8": (lambda: parallel.Pmap(jax.devices()), 1),
    "mesh 8 x 1": (lambda: parallel.make_strategy(ParallelSection("mesh", -1, 1)), 1),
    "mesh 4 x 2": (lambda: parallel.make_strategy(ParallelSection("mesh", -1, 2)), 1),
    "mesh 2 x 4": (lambda: parallel.make_strategy(ParallelSection("mesh", 2, -1)), 1),
    "mesh 1 x 8": (lambda: parallel.make_strategy(ParallelSection("mesh", 1, 8)), 1),
}


def keep_gradient() -> optax.GradientTransformation:
    """Passes the gradient on and keeps it as its state, so that one compiled step shows both gradient and update."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
    )


OPTIMIZER = optax.chain(keep_gradient(), optax.flatten(optax.adamw(1e-2)))  # flat: a third of the operations to compile


def make_objective(architecture, dropout=0.0, dtype=jnp.float32):
    sizes = TINY | {"num_layers": 1, "hidden_dropout": dropout, "attention_dropout": dropout}
    if architecture == "mlm":
        return step.mlm_objective(bertgpt.BertForMaskedLM(bertgpt.presets.bert_tiny(**sizes), dtype=dtype))
    if architecture == "bert":
        return step.bert_objective(bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**sizes), dtype=dtype))
    return step.gpt_objective(bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**sizes), dtype=dtype))


def make_batch(architecture):
    """8 rows, of unequally many counted positions and, for BERT, of unequal lengths."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (8, 13)).astype(np.int32)
    if architecture == "gpt":
        mask = (np.arange(12) < 3 * MASKED[:, None]).astype(np.int32)
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": mask}
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": (np.arange(12) < np.array([12, 9, 12, 6, 12, 8, 12, 5])[:, None]).astype(np.int32),
        "token_type_ids": np.repeat([[0] * 3 + [1] * 9], 8, axis=0).astype(np.int32),
        "masked_positions": np.repeat([[1, 2, 3, 4]], 8, axis=0).astype(np.int32),
        "labels": rng.integers(0, 64, (8, 4)).astype(np.int32),
        "loss_mask": (np.arange(4) < MASKED[:, None]).astype(np.int32),
        "next_sentence_label": np.array([0, 1, 1, 0, 1, 0, 0, 1], np.int32),
        "nsp_loss_mask": np.array([0, 1, 1, 1, 0, 1, 0, 1], np.int32),
    }


@functools.cache
def initial_params(objective):
    """Held by NumPy, so that a donated state takes none of them away."""
    return jax.device_get(jax.jit(objective.model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])


def make_state(objective):
    return create_state(objective.model, OPTIMIZER, 0, initial_params(objective))


def follow(strategy, accumulate, objective, batch, steps):
    """The metrics of each step from seed 0 on, and the first gradient."""
    bound = functools.partial(step.train_step, objective=objective, optimizer=OPTIMIZER, accumulate=accumulate)
    train, _ = parallel.compile_steps(strategy, bound, step.eval_step)
    state, path = strategy.put_state(make_state(objective)), []
    for n in range(steps):
        state, metrics = train(state, strategy.put_batch(batch))
        path.append(strategy.fetch(metrics)[0])
        if n == 0:
            gradient = jax.device_get(strategy.to_checkpoint(state).opt_state[0])
    assert strategy.to_checkpoint(state).step == steps
    return path, gradient


@pytest.fixture(scope="module", params=["bert", "gpt"])
def case(request):
    """An objective without dropout, its batch, and the global mean losses and their gradient by their definition."""
    objective, batch = make_objective(request.param), make_batch(request.param)

    def loss(params):
        output = objective.model.apply({"params": params}, **{name: batch[name] for name in objective.inputs})
        means = {name: value.mean() for name, value in objective.losses(output, batch).items()}
        return sum(means.values()), means

    params = initial_params(objective)
    gradient, means = jax.jit(jax.grad(loss, has_aux=True))(params)
    return objective, batch, gradient, means


@pytest.mark.parametrize("name", ["pmap over 2, accumulated", "mesh 2 x 4"])
def test_masked_tokens_alone_are_learned_alike_on_several_devices(name):
    objective, batch = make_objective("mlm"), make_batch("mlm")
    paths = [follow(STRATEGIES[each][0](), STRATEGIES[each][1], objective, batch, 2)[0] for each in ("jit", name)]
    for metrics, reference in zip(*paths, strict=True):
        assert metrics.keys() == reference.keys() == {"mlm_loss", "loss", "grad_norm", "tokens"}
        for key, value in metrics.items():
            np.testing.assert_allclose(value, reference[key], **CLOSE, err_msg=key)


@pytest.fixture(scope="module")
def plain(case):
    """10 steps of plain jit."""
    objective, batch, *_ = case
    return follow(parallel.Jit(), 1, objective, batch, 10)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "jit"])
def test_the_gradient_and_ten_losses_are_those_of_one_device(case, plain, name):
    objective, batch, expected, _ = case
    make, accumulate = STRATEGIES[name]
    path, gradient = follow(make(), accumulate, objective, batch, 10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), gradient, expected)
    for metrics, reference in zip(path, plain[0], strict=True):
        assert metrics.keys() == reference.keys()
        for key, value in metrics.items():
            np.testing.assert_allclose(value, reference[key], **CLOSE, err_msg=key)


def test_the_gradient_of_one_device_is_the_mean_losses_gradient(case, plain):
    _, batch, expected, means = case
    path, gradient = plain
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), gradient, expected)
    for name, mean in means.items():
        np.testing.assert_allclose(path[0][name], mean, **CLOSE)
    np.testing.assert_allclose(path[0]["loss"], sum(means.values()), **CLOSE)
    np.testing.assert_allclose(path[0]["grad_norm"], optax.tree.norm(expected), **CLOSE)
    assert path[0]["tokens"] == batch["attention_mask" if "attention_mask" in batch else "loss_mask"].sum()
    assert path[9]["loss"] < path[0]["loss"] - 0.1


@pytest.mark.parametrize("case", ["gpt"], indirect=True)
def test_a_mean_of_device_means_would_be_another_gradient(case):
    objective, batch, expected, _ = case
    state = make_state(objective)
    gradients = jax.jit(lambda batch: step.gradients(state.params, batch, step.step_key(state), objective=objective)[0])
    rows = [gradients({name: value[row : row + 1] for name, value in batch.items()}) for row in range(8)]
    of_means = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *rows)
    differences = jax.tree.map(lambda a, b: abs(a - b).max(), of_means, expected)
    assert max(jax.tree.leaves(differences)) > 1e-2


@pytest.mark.parametrize("case", ["bert"], indirect=True)
@pytest.mark.parametrize("name", ["pmap over 8", "mesh 8 x 1"])
def test_evaluation_sums_are_those_of_the_whole_batch(case, name):
    objective, batch, _, means = case
    strategy = STRATEGIES[name][0]()
    _, evaluate = parallel.compile_steps(
        strategy, step.train_step, functools.partial(step.eval_step, objective=objective)
    )
    params = strategy.put_state(make_state(objective)).params
    sums, _ = evaluate(params, strategy.put_batch(batch))
    sums, _ = strategy.fetch(sums)
    assert {key: value.weight for key, value in sums.items()} == {
        "mlm_loss": 15,
        "mlm_accuracy": 15,
        "nsp_loss": 5,
        "nsp_accuracy": 5,
        "nsp_recall_is_next": 2,
        "nsp_recall_not_next": 3,
    }
    for key, mean in means.items():
        np.testing.assert_allclose(sums[key].mean(), mean, **CLOSE)


@pytest.mark.parametrize("name", ["jit", "pmap over 8", "mesh 4 x 2"])
def test_figures_and_rows_come_to_the_host_in_one_transfer(name, monkeypatch):
    strategy, transfers, get = STRATEGIES[name][0](), [], jax.device_get
    batch = {"x": np.arange(16, dtype=np.float32).reshape(8, 2)}
    evaluate = strategy.compile_eval(lambda params, batch: ({"sum": batch["x"].sum()}, {"twice": 2 * batch["x"]}))
    sums, rows = evaluate({}, strategy.put_batch(batch))
    monkeypatch.setattr(jax, "device_get", lambda tree: (transfers.append(jax.tree.leaves(tree)), get(tree))[1])
    figures, kept = strategy.fetch([sums, sums], rows)
    assert [figure["sum"] for figure in figures] == [120, 120]
    np.testing.assert_array_equal(kept["twice"], 2 * batch["x"])
    (leaves,) = transfers
    assert len(leaves) == 3
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((figures, kept)))


def packed_batch():
    """8 rows of up to 3 examples, of unequally many counted positions."""
    lengths = np.array([[6, 4, 2], [12, 0, 0], [5, 5, 0], [9, 3, 0], [4, 4, 4], [7, 0, 0], [8, 3, 1], [6, 6, 0]])
    slots = lay_out(lengths)
    rng = np.random.default_rng(0)
    rows = {
        "input_ids": rng.integers(0, 64, (len(slots.row), 12)).astype(np.int32),
        "attention_mask": np.ones((len(slots.row), 12), np.int32),
        "token_type_ids": np.repeat([[0] * 3 + [1] * 9], len(slots.row), axis=0).astype(np.int32),
        "next_sentence_label": rng.integers(0, 2, len(slots.row)).astype(np.int32),
        "nsp_loss_mask": np.ones(len(slots.row), np.float32),
    }
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    packed = assemble(slots, (8, 3, 12), [(np.arange(len(slots.row)), rows)], tokens)
    predicted = {name: value for name, value in make_batch("bert").items() if name in ("labels", "loss_mask")}
    return packed | predicted | {"masked_positions": np.repeat([[1, 2, 3, 4]], 8, axis=0).astype(np.int32)}


@pytest.mark.parametrize("name", ["jit, accumulated", "pmap over 2, accumulated", "mesh 4 x 2"])
def test_packed_rows_give_one_gradient_however_they_are_split(name):
    objective, batch = make_objective("bert"), packed_batch()
    assert batch["nsp_loss_mask"].sum(1).tolist() == [3, 1, 2, 2, 3, 1, 3, 2]
    (whole, expected), (split, gradient) = (
        follow(STRATEGIES[each][0](), STRATEGIES[each][1], objective, batch, 1) for each in ("jit", name)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), gradient, expected)
    for key, value in whole[0].items():
        np.testing.assert_allclose(split[0][key], value, **CLOSE, err_msg=key)


def test_pmap_and_every_mesh_of_as_many_devices_agree_under_dropout():
    objective, batch = make_objective("gpt", dropout=0.1), make_batch("gpt")
    names = ("pmap over 8", "mesh 8 x 1", "mesh 2 x 4")
    first, *others = ([m["loss"] for m in follow(STRATEGIES[n][0](), 1, objective, batch, 3)[0]] for n in names)
    for path in others:
        np.testing.assert_allclose(path, first, rtol=1e-5)


@pytest.mark.parametrize("split", ["pmap", "mesh", "micro-batches"])
def test_every_device_and_micro_batch_drops_by_a_key_of_its_own(split):
    # Two equal rows, one a part: part n must see dropout by the step's key with n folded in.
    objective = make_objective("gpt", dropout=0.1)
    row = {name: value[2:3] for name, value in make_batch("gpt").items()}
    both = {name: np.repeat(value, 2, axis=0) for name, value in row.items()}
    strategy = parallel.Jit() if split == "micro-batches" else parallel.make_strategy(ParallelSection(split, 2))
    state = make_state(objective)

    @jax.jit
    def part(n):
        output = step.apply(objective, state.params, row, jax.random.fold_in(step.step_key(state), n))
        return objective.losses(output, row)["lm_loss"].mean()

    path, _ = follow(strategy, 2 if split == "micro-batches" else 1, objective, both, 1)
    assert abs(part(0) - part(1)) > 1e-3
    np.testing.assert_allclose(path[0]["lm_loss"], (part(0) + part(1)) / 2, rtol=1e-5)


def test_every_step_has_a_key_of_its_own():
    state = make_state(make_objective("gpt"))
    first, second = (jax.random.key_data(step.step_key(state.replace(step=jnp.int32(n)))) for n in (0, 1))
    assert (first != second).any()


def test_bfloat16_trains_float32_parameters():
    objective, batch = make_objective("gpt", dtype=jnp.bfloat16), make_batch("gpt")
    state = make_state(objective)
    state, metrics = jax.jit(lambda state: step.train_step(state, batch, objective=objective, optimizer=OPTIMIZER))(
        state
    )
    leaves = jax.tree.leaves((state.params, state.opt_state[0]))  # parameters and gradient
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], 4.16, atol=0.1)  # log 64


def test_normalize_loss_masks_makes_every_mask_add_up_to_one_or_stay_zero():
    batch = {"loss_mask": jnp.array([[1, 0], [1, 2]]), "nsp_loss_mask": jnp.zeros(2), "labels": jnp.array([3, 4])}
    shared = step.normalize_loss_masks(batch)
    np.testing.assert_allclose(shared["loss_mask"], [[0.25, 0], [0.25, 0.5]])
    np.testing.assert_array_equal(shared["nsp_loss_mask"], [0, 0])
    np.testing.assert_array_equal(shared["labels"], [3, 4])


@pytest.mark.parametrize("name", ["jit", "pmap over 8", "mesh 4 x 2"])
@pytest.mark.parametrize("architecture", ["bert", "gpt"])
def test_every_train_step_lowers_for_tpu_and_cuda_from_here(architecture, name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # not with what a CPU's step has of its own
    objective, batch = make_objective(architecture, 0.1, jnp.bfloat16), make_batch(architecture)
    strategy = STRATEGIES[name][0]()
    bound = functools.partial(step.train_step, objective=objective, optimizer=make_optimizer(OptimizerSection(), 9))
    train = strategy.compile_train(functools.partial(bound, distribute=strategy.distribute))
    state = create_state(objective.model, make_optimizer(OptimizerSection(), 9), 0, initial_params(objective))
    program = jax.jit(lambda state, batch: train(state, batch))
    exported = jax.export.export(program, platforms=["tpu", "cuda"])(
        strategy.put_state(state), strategy.put_batch(batch)
    )
    assert exported.platforms == ("tpu", "cuda")
    assert exported.nr_devices == strategy.devices


@pytest.mark.parametrize(
    ("section", "name", "devices"),
    [
        (ParallelSection(), "mesh", 8),
        (ParallelSection(data=2), "mesh", 2),
        (ParallelSection("pmap", 2), "pmap", 2),
        (ParallelSection(data=1), "jit", 1),
        (ParallelSection("mesh", 4), "mesh", 4),
        (ParallelSection("mesh", 2, 2), "mesh", 4),
        (ParallelSection(fsdp=2), "mesh", 8),
        (ParallelSection("jit"), "jit", 1),
    ],
)
def test_strategy_is_chosen_by_name_and_devices(section, name, devices):
    strategy = parallel.make_strategy(section)
    assert (strategy.name, strategy.devices) == (name, devices)


@pytest.mark.parametrize(
    ("section", "count", "shape"),
    [
        (ParallelSection(), 1, (1, 1)),
        (ParallelSection(), 8, (1, 8)),
        (ParallelSection(), 12, (2, 6)),
        (ParallelSection(), 16, (2, 8)),
        (ParallelSection(), 11, (11, 1)),
        (ParallelSection("mesh"), 8, (1, 8)),
        (ParallelSection("pmap"), 8, (8, 1)),
        (ParallelSection(data=4), 8, (4, 1)),
        (ParallelSection(fsdp=1), 8, (8, 1)),
    ],
)
def test_a_mesh_of_all_devices_shards_over_up_to_8(section, count, shape):
    assert parallel.mesh_shape(section, count) == shape


@pytest.mark.parametrize(
    "section",
    [
        OptimizerSection(learning_rate=0.1),
        OptimizerSection(learning_rate=0.1, bias_correction=False, clip_norm=0.0),
        OptimizerSection(learning_rate=0.1, name="lamb", clip_norm=0.1),
        OptimizerSection(learning_rate=0.1, name="lion", layer_decay=0.9),
        OptimizerSection(learning_rate=0.1, name="muon"),
    ],
    ids=["AdamW", "Adam without bias correction", "LAMB", "Lion", "Muon"],
)
def test_the_update_of_a_sharded_state_is_that_of_whole_arrays(section):
    optimizer, params = make_optimizer(section, 9), initial_params(make_objective("bert"))
    rng = np.random.default_rng(0)
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in range(3)]

    @jax.jit
    def update(params, opt_state, grad):
        updates, opt_state = optimizer.update(grad, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def updated(place):
        params_now, opt_state = place(params), place(optimizer.init(params))
        for grad in grads:
            params_now, opt_state = update(params_now, opt_state, place(grad))
        return params_now, opt_state

    mesh = parallel.make_strategy(ParallelSection())
    sharded = updated(lambda tree: jax.device_put(tree, mesh.shardings(tree)))
    assert not sharded[0]["bert"]["stack"]["block_0"]["feed_forward"]["up"]["kernel"].is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sharded, updated(lambda x: x))


@pytest.mark.parametrize("count", [9, 0])
def test_a_number_of_devices_that_are_not_there_is_refused(count):
    with pytest.raises(bertgpt.InputError, match=f"parallel.data is {count} and parallel.fsdp 1, but there are 8 dev"):
        parallel.make_strategy(ParallelSection(data=count))
    with pytest.raises(bertgpt.InputError, match=f"parallel.data is -1 and parallel.fsdp {count}, but there are 8 dev"):
        parallel.make_strategy(ParallelSection(fsdp=count))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (ParallelSection(data=-1, fsdp=-1), "give two numbers, or set one of them to -1"),
        (ParallelSection(data=3, fsdp=3), "parallel.data is 3 and parallel.fsdp 3, but there are 8 devices"),
        (ParallelSection("pmap", fsdp=2), "is 2, which parallel.strategy pmap does not support; use mesh"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(section, message):
    with pytest.raises(bertgpt.InputError, match=message):
        parallel.make_strategy(section)


def held(strategy, state):
    """The share of parameters and of the optimizer that one device holds, in bytes."""
    lies = strategy.shardings(state)
    shares = []
    for part in ("params", "opt_state"):
        pairs = zip(jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(lies, part)), strict=True)
        sizes = [(math.prod(place.shard_shape(leaf.shape)), math.prod(leaf.shape)) for leaf, place in pairs]
        shares.append(sum(mine for mine, _ in sizes) / sum(whole for _, whole in sizes))
    return shares


@pytest.mark.parametrize("preset", ["bert_tiny", "bert_base", "bert_large", "gpt1"])
def test_under_fsdp_a_device_holds_its_part_alone(preset):
    config = bertgpt.presets.get(preset)
    name = "BertForPreTraining" if config.architecture == "bert" else "OpenAIGPTLMHeadModel"
    create = functools.partial(create_state, getattr(bertgpt, name)(config), make_optimizer(OptimizerSection(), 9), 0)
    state = jax.eval_shape(create)
    for fsdp in (2, 8):
        shares = held(parallel.make_strategy(ParallelSection("mesh", -1, fsdp)), state)
        assert max(shares) <= 1 / fsdp + 0.01, shares


def test_parts_of_parameters_are_sent_in_the_dtype_of_the_computation_and_gradients_in_float32():
    objective, batch = make_objective("bert", dtype=jnp.bfloat16), make_batch("bert")
    strategy = parallel.make_strategy(ParallelSection(), "bfloat16")
    bound = functools.partial(step.train_step, objective=objective, optimizer=OPTIMIZER, distribute=strategy.distribute)
    state = make_state(objective)
    text = strategy.lower(bound, jax.eval_shape(lambda: state), batch).as_text()
    sent = {re.search(r"x(bf16|f32)>$", line)[1] for line in text.splitlines() if "all_gather" in line}
    assert sent == {"bf16"}
    summed = re.findall(r'"stablehlo.reduce_scatter".*?\}\) : \(tensor<[^>]*?(bf16|f32)>', text, re.DOTALL)
    assert set(summed) == {"f32"}
    path, gradient = follow(strategy, 1, objective, batch, 3)
    expected, _ = follow(parallel.Jit(), 1, objective, batch, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    np.testing.assert_allclose([m["loss"] for m in path], [m["loss"] for m in expected], rtol=0.01)


def test_a_sharded_state_is_made_and_kept_in_its_parts():
    strategy, objective = parallel.make_strategy(ParallelSection("mesh", 1, 8)), make_objective("bert")
    optimizer = make_optimizer(OptimizerSection(), 9)
    state = strategy.compile_init(functools.partial(create_state, objective.model, optimizer, 0))(None)
    bound = functools.partial(step.train_step, objective=objective, optimizer=optimizer)
    train, _ = parallel.compile_steps(strategy, bound, step.eval_step)

    def parts(state):
        return [leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves((state.params, state.opt_state))]

    before = parts(state)
    kernel = state.params["bert"]["stack"]["block_0"]["feed_forward"]["up"]["kernel"]
    assert (kernel.shape, kernel.addressable_shards[0].data.shape) == ((16, 32), (2, 32))
    state, _ = train(strategy.put_state(state), strategy.put_batch(make_batch("bert")))
    assert parts(state) == before


class OfProcess(NamedTuple):
    """Stands for a device of one of several processes."""

    process_index: int


TWO_PROCESSES = [OfProcess(number // 4) for number in range(8)]


def test_several_processes_refuse_pmap():
    with pytest.raises(bertgpt.InputError, match="parallel.strategy pmap runs in one process, but there are 2"):
        parallel.make_strategy(ParallelSection("pmap"), devices=TWO_PROCESSES)


def test_several_processes_use_all_devices():
    with pytest.raises(bertgpt.InputError, match="2 processes must use all 8 devices"):
        parallel.make_strategy(ParallelSection(data=4), devices=TWO_PROCESSES)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(12, 1), (8, 2)])
def test_a_batch_that_devices_and_micro_batches_do_not_divide_is_refused(batch_size, accumulate):
    with pytest.raises(bertgpt.InputError, match=f"train.batch_size {batch_size}"):
        parallel.check_batch(batch_size, accumulate, parallel.Pmap(jax.devices()))


def test_a_batch_that_devices_and_micro_batches_divide_is_accepted():
    parallel.check_batch(16, 2, parallel.Pmap(jax.devices()))


@pytest.mark.parametrize(("data", "fsdp"), [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_gradients_are_float32_sums_of_what_each_device_sends(data, fsdp, dtype):
    """Kernels are sent in the dtype that is asked for; tables, biases and gains in float32."""
    section = ParallelSection("mesh", data, fsdp, gradient_dtype=dtype)
    strategy = parallel.make_strategy(section, "bfloat16")
    shapes = {"kernel": (16, 24), "embedding": (13, 24), "bias": (24,), "narrow": {"embedding": (2, 7)}}
    shapes |= {"by_rows": {"embedding": (16, 7)}, "by_columns": {"kernel": (13, 24)}, "wide": {"embedding": (3, 1024)}}
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda shape: rng.normal(size=(8, *shape)).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    places = parallel.specs(jax.tree.map(lambda x: x[0], grads), strategy.mesh)

    def local(grads):
        return parallel.scatter(jax.tree.map(lambda x: x[0], grads), places, strategy.gradient_dtype)

    summed = jax.jit(strategy._map(local, (parallel.BATCH_SPEC,), places))(grads)
    sent = grads | {"by_columns": dict(grads["by_columns"])}
    if dtype == "bfloat16" and fsdp > 1:
        for kernels in (sent, sent["by_columns"]):
            kernels["kernel"] = np.float32(jnp.asarray(kernels["kernel"], jnp.bfloat16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.sum(0), rtol=1e-5, atol=1e-6), summed, sent)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(summed))


def test_gradients_of_a_float32_run_are_sent_in_float32():
    section = ParallelSection("mesh", gradient_dtype="bfloat16")
    assert parallel.make_strategy(section, "float32").gradient_dtype == jnp.float32
    assert parallel.make_strategy(section, "bfloat16").gradient_dtype == jnp.bfloat16


def test_gradients_of_kernels_in_bfloat16_change_the_losses_little():
    """20 steps of 8 devices, with dense layers that do not round the gradients of kernels themselves."""
    objective, batch = make_objective("bert", dtype=jnp.bfloat16), make_batch("bert")
    objective = objective._replace(apply=fast_apply(objective.model, "cpu"))

    def losses(dtype):
        strategy = parallel.make_strategy(ParallelSection(gradient_dtype=dtype), "bfloat16")
        bound = functools.partial(step.train_step, objective=objective, optimizer=OPTIMIZER)
        train, _ = parallel.compile_steps(strategy, bound, functools.partial(step.eval_step, objective=objective))
        state, found = strategy.put_state(make_state(objective)), []
        for _ in range(20):
            state, metrics = train(state, strategy.put_batch(batch))
            found.append(float(metrics["loss"]))
        return np.array(found)

    exact, rounded = losses("float32"), losses("bfloat16")
    assert exact[-1] < exact[0]
    assert 0 < abs(exact - rounded).max() < 0.01 * exact[0]
