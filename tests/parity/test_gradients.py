"""The gradient of every parameter under each head's loss, and 50 updates of both pretraining jobs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from reference import ARCHITECTURES, BERT, GPT, LENGTH, VOCAB, make_inputs, make_reference, to_torch

import bertgpt
from bertgpt import losses
from bertgpt.checkpoints import hf_mapping, parameters
from bertgpt.data.pretraining.sentence_pairs import BertPairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns
from bertgpt.data.pretraining.windows import GptWindows
from train.optimizers import make_optimizer
from train.sections import OptimizerSection
from train.state import create_state
from train.step import bert_objective, gpt_objective, mlm_objective, train_step

RNG = np.random.default_rng(5)
ROWS, CHOICE_ROWS = 4, 2
TOKENS = RNG.integers(0, VOCAB, (ROWS, LENGTH))
# Never on padding: torch's Embedding has no gradient at BERT's padding_idx, whatever reads it (docs/parity.md).
COUNTS = (RNG.random((ROWS, LENGTH)) < 0.5) & make_inputs("BertModel", "right padding")["attention_mask"].astype(bool)
CLASS, PAIR, PLACE = (RNG.integers(0, n, ROWS) for n in (3, 2, 4))  # every row has 4 real tokens
CHOICE = RNG.integers(0, 3, CHOICE_ROWS)
SEVERAL = RNG.integers(0, 2, (ROWS, 3)).astype(np.float32)
NUMBER = RNG.normal(size=ROWS).astype(np.float32)
CHOICE_TOKENS = RNG.integers(1, VOCAB, (CHOICE_ROWS, 3, LENGTH))


def mean(logits, labels, mask=None):
    """Cross-entropy under a mask."""
    labels = jnp.asarray(labels)
    return losses.cross_entropy(logits, labels, jnp.ones(labels.shape) if mask is None else jnp.asarray(mask)).mean()


def next_token(logits, labels, mask=None):
    """Theirs shifts labels inside; ours come shifted."""
    return mean(logits[..., :-1, :], labels[..., 1:], mask)


IGNORED = np.where(COUNTS, TOKENS, -100)
# name: (what theirs is given, our loss)
LOSSES = {
    "BertForPreTraining": (
        {"labels": IGNORED, "next_sentence_label": PAIR},
        lambda out: mean(out.mlm_logits, TOKENS, COUNTS) + mean(out.nsp_logits, PAIR),
    ),
    "BertForMaskedLM": ({"labels": IGNORED}, lambda out: mean(out.mlm_logits, TOKENS, COUNTS)),
    "BertForNextSentencePrediction": ({"labels": PAIR}, lambda out: mean(out.nsp_logits, PAIR)),
    "BertForSequenceClassification": ({"labels": CLASS}, lambda out: mean(out.logits, CLASS)),
    "BertForSequenceClassification, multi-label": (
        {"labels": SEVERAL},
        lambda out: optax.sigmoid_binary_cross_entropy(out.logits, SEVERAL).mean(),
    ),
    "BertForSequenceClassification, regression": (
        {"labels": NUMBER},
        lambda out: optax.squared_error(out.logits[:, 0], NUMBER).mean(),
    ),
    "BertForMultipleChoice": ({"labels": CHOICE}, lambda out: mean(out.mc_logits, CHOICE)),
    "BertForTokenClassification": (
        {"labels": np.where(COUNTS, TOKENS % 3, -100)},
        lambda out: mean(out.logits, TOKENS % 3, COUNTS),
    ),
    "BertForQuestionAnswering": (
        {"start_positions": PLACE, "end_positions": PLACE[::-1].copy()},
        lambda out: (mean(out.start_logits, PLACE) + mean(out.end_logits, PLACE[::-1])) / 2,
    ),
    "OpenAIGPTLMHeadModel": (
        {"labels": IGNORED},
        lambda out: next_token(out.logits, TOKENS, COUNTS[:, 1:]),
    ),
    "OpenAIGPTDoubleHeadsModel": (
        {"labels": CHOICE_TOKENS, "mc_labels": CHOICE},
        lambda out: mean(out.mc_logits, CHOICE) + 0.5 * next_token(out.logits, CHOICE_TOKENS),
    ),
    "OpenAIGPTForSequenceClassification": ({"labels": CLASS}, lambda out: mean(out.logits, CLASS)),
}


NO_GRADIENT = (  # a number added to every choice changes no softmax over choices
    ("BertForMultipleChoice", "classifier.bias"),
    ("OpenAIGPTDoubleHeadsModel", "multiple_choice_head.summary.bias"),
)


def their_gradients(reference, loss):
    loss.backward()
    return {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}


def our_gradients(model, params, loss):
    name = type(model).__name__
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    family = hf_mapping.FAMILIES[hf_mapping.family_of(name)]
    return float(value), parameters.to_hf_tensors(family, name, model, grads)


@pytest.mark.parametrize("case", LOSSES)
def test_gradients(case, tmp_path, measured):
    name = case.split(",")[0]
    changes = {"problem_type": "multi_label_classification"} if "multi" in case else {}
    changes |= {"num_labels": 1} if "regression" in case else {}
    reference = make_reference(name, **changes)
    reference.save_pretrained(tmp_path)
    model, params = bertgpt.load_pretrained(tmp_path)
    labels, our_loss = LOSSES[case]
    # An answer's softmax runs over padding too.
    inputs = make_inputs(name, "ids" if name == "BertForQuestionAnswering" else "right padding")
    out = reference(**to_torch(name, inputs), **{key: torch.tensor(value) for key, value in labels.items()})
    loss = out.mc_loss + 0.5 * out.loss if name == "OpenAIGPTDoubleHeadsModel" else out.loss
    theirs = their_gradients(reference, loss)
    value, grads = our_gradients(model, params, lambda p: our_loss(model.apply({"params": p}, **inputs)))
    assert measured(case, "loss", abs(value - loss.item())) <= 1e-5
    assert grads.keys() <= theirs.keys()
    assert not theirs.keys() - grads.keys() - {"cls.predictions.decoder.weight", "lm_head.weight"}
    for key, gradient in grads.items():
        measured(case, "gradients", float(abs(gradient - theirs[key]).max()))
        np.testing.assert_allclose(gradient, theirs[key], rtol=1e-4, atol=1e-6, err_msg=key)
        assert abs(gradient).max() > 0 or (name, key) in NO_GRADIENT, key


def test_every_head_has_a_loss():
    assert {case.split(",")[0] for case in LOSSES} == set(ARCHITECTURES) - {"BertModel", "OpenAIGPTModel"}


STEPS, BATCH = 50, 8
OPTIMIZER = OptimizerSection(learning_rate=2e-3, schedule="constant", weight_decay=0.01, eps=1e-6, clip_norm=1.0)


def bert_labels(batch):
    """Their labels stand at every position of the text, -100 where none is."""
    labels = np.full(batch["input_ids"].shape, -100)
    rows, places = np.nonzero(batch["loss_mask"])
    labels[rows, batch["masked_positions"][rows, places]] = batch["labels"][rows, places]
    keys = ("input_ids", "attention_mask", "token_type_ids", "next_sentence_label")
    return {key: batch[key] for key in keys if key in batch} | {"labels": labels}


def gpt_labels(batch):
    """Their labels are not shifted: one more token, of which the model's input loses the last logits."""
    ids = np.concatenate([batch["input_ids"], batch["labels"][:, -1:]], axis=1)
    counted = np.concatenate([np.zeros((len(ids), 1)), batch["loss_mask"]], axis=1) > 0
    return {"input_ids": ids, "labels": np.where(counted, ids, -100)}


def make_batches(source):
    return [source.batch(np.arange(step * BATCH, (step + 1) * BATCH)) for step in range(STEPS)]


@pytest.fixture
def bert_job(bert_split, wordpiece):
    config = transformers.BertConfig(**BERT | {"vocab_size": wordpiece.get_vocab_size(), "initializer_range": 0.1})
    batches = make_batches(BertPairs(bert_split, wordpiece, 32, seed=0))
    return transformers.BertForPreTraining(config), batches, bert_labels, bert_objective


@pytest.fixture
def mlm_job(bert_split, wordpiece):
    config = transformers.BertConfig(**BERT | {"vocab_size": wordpiece.get_vocab_size(), "initializer_range": 0.1})
    batches = make_batches(SentenceRuns(bert_split, wordpiece, 32, seed=0))
    return transformers.BertForMaskedLM(config), batches, bert_labels, mlm_objective


@pytest.fixture
def gpt_job(gpt_split, bpe):
    config = transformers.OpenAIGPTConfig(**GPT | {"vocab_size": bpe.get_vocab_size(), "initializer_range": 0.1})
    return (
        transformers.OpenAIGPTLMHeadModel(config),
        make_batches(GptWindows(gpt_split, 31, seed=0)),
        gpt_labels,
        gpt_objective,
    )


def train_theirs(reference, batches, as_theirs):
    """AdamW as Hugging Face's Trainer sets it up: no decay on biases and norms, the gradient's norm clipped."""
    named = list(reference.named_parameters())
    plain = [parameter for name, parameter in named if name.endswith("bias") or "LayerNorm" in name or ".ln_" in name]
    decayed = [parameter for _, parameter in named if not any(parameter is other for other in plain)]
    groups = [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, eps=OPTIMIZER.eps)
    curve = []
    for batch in batches:
        optimizer.zero_grad()
        inputs = {key: torch.tensor(value, dtype=torch.long) for key, value in as_theirs(batch).items()}
        loss = reference(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        curve.append(loss.item())
    return curve


def train_ours(model, params, batches, make_objective):
    """The train step of `python -m train pretrain`."""
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    state = create_state(model, optimizer, 0, params)
    step = jax.jit(lambda state, batch: train_step(state, batch, objective=make_objective(model), optimizer=optimizer))
    curve = []
    for batch in batches:
        state, metrics = step(state, batch)
        curve.append(float(metrics["loss"]))
    return state.params, curve


@pytest.mark.parametrize("job", ["bert_job", "mlm_job", "gpt_job"])
def test_fifty_updates_have_equal_losses(job, request, tmp_path, measured):
    reference, batches, as_theirs, make_objective = request.getfixturevalue(job)
    name = type(reference).__name__
    reference.save_pretrained(tmp_path / "in")
    model, params = bertgpt.load_pretrained(tmp_path / "in")
    params, ours = train_ours(model, params, batches, make_objective)
    theirs = train_theirs(reference.train(), batches, as_theirs)
    assert measured(name, "50 losses", float(abs(np.array(ours) - theirs).max())) <= 1e-4
    assert np.mean(theirs[-5:]) < theirs[0] - 0.2  # it learns

    bertgpt.save_pretrained(tmp_path / "out", model, params)
    back = type(reference).from_pretrained(tmp_path / "out").eval()
    inputs = {key: torch.tensor(value, dtype=torch.long) for key, value in as_theirs(batches[0]).items()}
    with torch.no_grad():
        difference = abs(back(**inputs).loss - reference.eval()(**inputs).loss).item()
    assert measured(name, "loss after 50, exported", difference) <= 1e-4
