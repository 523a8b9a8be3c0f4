"""Schedules and optimizers against literal values, optax and Google's formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from bertgpt.errors import InputError
from train import optimizers
from train.sections import OptimizerSection

PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.5, -1.0])}}
GRADS = [jax.tree.map(lambda x, n=n: jnp.sin(3.0 * x + n), PARAMS) for n in range(4)]
OFF = {"clip_norm": 0.0, "learning_rate": 0.1, "schedule": "constant"}


def follow(optimizer, grads=GRADS):
    """The parameters after each gradient."""
    params, state, path = PARAMS, optimizer.init(PARAMS), []
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0, 1.8, 1.8, 1.1, 0.9, 0, 0]),  # decay counts from update 0: 2 x (1 - 10 / 100) after warm-up
        ("cosine", [0, 1.8, 1.9510565, 1.1564345, 0.8435655, 0, 0]),
        ("constant", [0, 1.8, 2, 2, 2, 2, 2]),
        ("wsd", [0, 1.8, 2, 2, 2, 0, 0]),
    ],
)
def test_corner_points_of_the_schedule(schedule, rates):
    section = OptimizerSection(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rate = optimizers.make_schedule(section, 100)
    np.testing.assert_allclose([rate(n) for n in (0, 9, 10, 45, 55, 100, 150)], rates, rtol=1e-5, atol=1e-6)


def test_wsd_is_constant_and_falls_in_the_last_steps_by_a_square_root():
    section = OptimizerSection(learning_rate=2.0, warmup_steps=10, schedule="wsd", decay_fraction=0.25)
    rate = optimizers.make_schedule(section, 100)
    rates = [2, 2, 2 * (1 - 0.2), 2 * (1 - 0.4), 2 * (1 - 0.8), 0]
    np.testing.assert_allclose([rate(n) for n in (10, 75, 76, 79, 91, 100)], rates, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        InputError, match=r"warm-up takes 80 updates and the decay 25, together more than train\.steps 100"
    ):
        optimizers.make_schedule(dataclasses.replace(section, warmup_steps=80), 100)
    assert optimizers.make_schedule(dataclasses.replace(section, warmup_steps=75), 100)(75) == 2


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 1.1), ("cosine", 1.1), ("wsd", 2)])
def test_a_decay_ends_at_its_final_fraction(schedule, middle):
    rate = optimizers.make_schedule(OptimizerSection(learning_rate=2.0, schedule=schedule, final_fraction=0.1), 100)
    np.testing.assert_allclose([rate(n) for n in (0, 50, 100, 200)], [2, middle, 0.2, 0.2], rtol=1e-5)


def test_lion_is_optax_lion_with_a_decay_mask():
    section = OptimizerSection(**OFF, name="lion", b1=0.8, b2=0.95, weight_decay=0.3)
    mask = {"dense": {"kernel": True, "bias": False}}
    reference = optax.lion(0.1, b1=0.8, b2=0.95, weight_decay=0.3, mask=mask)
    assert_close(follow(optimizers.make_optimizer(section, 10)), follow(reference))


def muon_by_hand(gradients):
    """The direction of Muon [I O] after the last gradient, in float64 (github.com/KellerJordan/Muon)."""
    momentum, b, count = 0.0, 0.95, len(gradients)
    for gradient in gradients:
        momentum = b * momentum + (1 - b) * gradient
    ahead = b * momentum / (1 - b ** (count + 1)) + (1 - b) * gradient / (1 - b**count)
    x = ahead / np.linalg.norm(ahead)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x * 0.2 * max(x.shape) ** 0.5


def test_muon_orthogonalizes_the_kernels_of_blocks_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    params = {
        "block_0": {"up": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)}},
        "head": {"kernel": np.zeros((4, 2))},
    }
    gradients = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in range(3)]
    section = OptimizerSection(name="muon", clip_norm=0.0, learning_rate=0.1, schedule="constant", weight_decay=0.0)
    muon, adam = (optimizers.make_optimizer(dataclasses.replace(section, name=n), 10) for n in ("muon", "adamw"))
    states = [muon.init(params), adam.init(params)]
    for grads in gradients:
        (found, states[0]), (plain, states[1]) = (
            optimizer.update(grads, state, params) for optimizer, state in zip((muon, adam), states, strict=True)
        )
    direction = muon_by_hand([np.float64(grads["block_0"]["up"]["kernel"]) for grads in gradients])
    np.testing.assert_allclose(found["block_0"]["up"]["kernel"], -0.1 * direction, rtol=1e-3, atol=1e-5)
    assert_close(found["head"], plain["head"])
    assert_close(found["block_0"]["up"]["bias"], plain["block_0"]["up"]["bias"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_host_computes_the_learning_rates_of_the_step(schedule, warmup):
    final = {} if schedule == "constant" else {"final_fraction": 0.05}
    section = OptimizerSection(learning_rate=2.5e-4, warmup_steps=warmup, schedule=schedule, **final)
    counts = [*range(0, 1000, 9), 999, 1000, 1001]
    on_host = [optimizers.make_schedule(section, 1000, np)(count) for count in counts]
    on_device = jax.vmap(optimizers.make_schedule(section, 1000))(jnp.array(counts))
    assert {type(rate) for rate in on_host} <= {np.float32, np.ndarray}
    assert {rate.dtype for rate in on_host} == {np.dtype("float32")}
    np.testing.assert_allclose(on_host, on_device, rtol=1e-6, atol=2.5e-4 * 1e-7)


def test_without_warmup_the_first_update_has_the_full_rate():
    assert optimizers.make_schedule(OptimizerSection(learning_rate=2.0), 100)(0) == 2


def test_the_schedule_is_followed_from_update_zero():
    section = OptimizerSection(learning_rate=0.1, warmup_steps=2, clip_norm=0.0, schedule="constant")
    first, second, *_ = follow(optimizers.make_optimizer(section, 10))
    assert_close(first, PARAMS)
    assert abs(second["dense"]["bias"] - PARAMS["dense"]["bias"]).max() > 0.01


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_gpt"])
def test_only_kernels_and_embeddings_are_decayed(model, request):
    model = request.getfixturevalue(model)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    by_name: dict[str, set[bool]] = {}
    for path, decayed in jax.tree_util.tree_leaves_with_path(optimizers.decay_mask(params)):
        by_name.setdefault(path[-1].key, set()).add(decayed)
    assert by_name == {"kernel": {True}, "embedding": {True}, "bias": {False}, "scale": {False}}


def test_adamw_is_optax_adamw_with_a_decay_mask():
    section = OptimizerSection(**OFF, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3)
    mask = {"dense": {"kernel": True, "bias": False}}
    reference = optax.adamw(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3, mask=mask)
    assert_close(follow(optimizers.make_optimizer(section, 10)), follow(reference))


LAMB_PARAMS = {
    "token": {"embedding": np.sin(np.arange(12.0)).reshape(4, 3)},
    "dense": {"kernel": np.cos(np.arange(6.0)).reshape(3, 2), "bias": np.zeros(2)},
    "empty": {"kernel": np.zeros((2, 2))},  # its norm is 0, and so its first ratio 1
    "norm": {"scale": np.ones(3), "bias": np.zeros(3)},
}


def googles_lamb(params, gradients, rate, clip_norm, bias_correction):
    """The parameters after each gradient by lamb_optimizer.py of google-research/albert, in float64."""
    b1, b2, eps, decay = 0.8, 0.95, 1e-3, 0.3
    flat, path = {k: np.asarray(v, np.float64) for k, v in params.items()}, []
    m, v = ({k: np.zeros_like(x) for k, x in flat.items()} for _ in range(2))
    for step, grads in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, param in flat.items():
            g = grads[name] * (clip_norm / norm if clip_norm and norm > clip_norm else 1)
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            corrections = (1 - b1 ** (step + 1), 1 - b2 ** (step + 1)) if bias_correction else (1, 1)
            update = m[name] / corrections[0] / (np.sqrt(v[name] / corrections[1]) + eps)
            ratio = 1.0
            if not name.endswith(("bias", "scale")):  # both exclusions are the same list
                update = update + decay * param
                sizes = np.linalg.norm(param), np.linalg.norm(update)
                ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
            flat[name] = param - ratio * rate(step) * update
        path.append(dict(flat))
    return path


@pytest.mark.parametrize("clip_norm", [0.0, 0.7])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_a_hundred_updates_of_lamb_are_googles(clip_norm, bias_correction):
    section = OptimizerSection(
        name="lamb",
        learning_rate=0.02,
        warmup_steps=10,
        schedule="linear",
        clip_norm=clip_norm,
        bias_correction=bias_correction,
        b1=0.8,
        b2=0.95,
        eps=1e-3,
        weight_decay=0.3,
    )
    optimizer = optimizers.make_optimizer(section, 120)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), LAMB_PARAMS)
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda x: np.float32(rng.normal(0.3, 0.2, x.shape)), params) for _ in range(100)]
    update, state, found = jax.jit(optimizer.update), optimizer.init(params), []
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(flatten_dict(params, sep="/"))
    rate = lambda step: 0.02 * (step / 10 if step < 10 else 1 - step / 120)  # noqa: E731
    flat = [flatten_dict(grads, sep="/") for grads in gradients]
    expected = googles_lamb(flatten_dict(LAMB_PARAMS, sep="/"), flat, rate, clip_norm, bias_correction)
    for step in (0, 1, 9, 50, 99):
        for name, value in expected[step].items():
            np.testing.assert_allclose(found[step][name], value, rtol=1e-5, atol=2e-6, err_msg=f"{step} {name}")


def test_the_state_of_lamb_is_that_of_older_checkpoints():
    section = OptimizerSection(name="lamb")
    older = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.01, mask=optimizers.decay_mask),
        optax.scale_by_trust_ratio(),
        optax.scale_by_learning_rate(lambda count: 0.1),
    )
    new = optimizers.make_optimizer(section, 10).init(PARAMS)
    assert jax.tree.structure(new) == jax.tree.structure(older.init(PARAMS))


def test_uncorrected_adam_is_googles_formula():
    section = OptimizerSection(**OFF, bias_correction=False, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3)
    path = follow(optimizers.make_optimizer(section, 10), GRADS[:3])
    for name, decay in {"kernel": 0.3, "bias": 0.0}.items():
        param, m, v = np.asarray(PARAMS["dense"][name]), 0.0, 0.0
        for grads, params in zip(GRADS, path, strict=False):
            grad = np.asarray(grads["dense"][name])
            m = 0.8 * m + 0.2 * grad
            v = 0.95 * v + 0.05 * grad**2
            param = param - 0.1 * (m / (np.sqrt(v) + 1e-3) + decay * param)
            np.testing.assert_allclose(params["dense"][name], param, rtol=1e-5)


@pytest.mark.parametrize(
    ("clip_norm", "scale", "expected"),
    [
        (1.0, 1.0, [-0.6 / 1.6, -0.8 / 1.8]),  # norm 5 over both leaves, clipped to 1
        (1.0, 0.1, [-0.3 / 1.3, -0.4 / 1.4]),  # norm 0.5 stays
        (0.0, 1.0, [-3 / 4, -4 / 5]),  # off
    ],
)
def test_clipping_is_of_the_global_norm(clip_norm, scale, expected):
    # With eps 1 the first update is -g / (|g| + 1), which shows the size of g.
    section = OptimizerSection(learning_rate=1.0, schedule="constant", eps=1.0, weight_decay=0.0, clip_norm=clip_norm)
    optimizer = optimizers.make_optimizer(section, 10)
    params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
    grads = {"kernel": jnp.array([3.0 * scale]), "bias": jnp.array([4.0 * scale])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose([updates["kernel"][0], updates["bias"][0]], expected, rtol=1e-5)
