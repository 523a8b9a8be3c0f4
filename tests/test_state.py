"""The state at step 0: initial weights that every kind of device shares, and the key of dropout."""

import numpy as np
import optax

import bertgpt
from bertgpt.config import ModelConfig
from train import state

SIZES = {"vocab_size": 8, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "mlp_size": 4, "max_positions": 4}


def initial(architecture: str) -> state.TrainState:
    config = ModelConfig(architecture=architecture, **SIZES)
    model = bertgpt.BertForMaskedLM(config) if architecture == "bert" else bertgpt.OpenAIGPTLMHeadModel(config)
    return state.create_state(model, optax.sgd(1.0), seed=3)


def test_initial_weights_are_those_of_threefry_as_on_every_kind_of_device():
    bert, gpt = initial("bert").params["bert"], initial("gpt").params["transformer"]
    for table, row in [
        (bert["embeddings"]["token"], [-0.01745634, 0.01899112, -0.01715289, 0.00651244]),
        (bert["embeddings"]["position"], [-0.02546421, 0.02303078, -0.00358791, -0.00299504]),
        (gpt["token"], [0.04024489, 0.00052373, 0.03842494, 0.03689945]),
        (gpt["position"], [0.02783323, 0.00598131, -0.036756, 0.00879874]),
    ]:
        np.testing.assert_allclose(table["embedding"][0], row, rtol=1e-5, atol=1e-8)


def test_the_key_of_a_run_is_that_of_older_checkpoints():
    """They contain it, so that a resumed run has the same dropout."""
    np.testing.assert_array_equal(initial("bert").key, np.uint32([1024511538, 2603795180] * 2))
