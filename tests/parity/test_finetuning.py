"""Whole fine-tuning runs from the command line beside torch's, from one folder, on the same rows in the same order."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from reference import BERT, GPT

import bertgpt
from bertgpt.checkpoints.adapt import add_tokens
from bertgpt.data.tasks.making import task_tokens
from bertgpt.tokenizers import vocabulary_size
from train import config as configs
from train import loader
from train.__main__ import main
from train.jobs import finetuning, task_rows
from train.optimizers import make_schedule
from train.reports import read_metrics

STEPS, BATCH, LENGTH = 50, 8, 24
OPTIONS = [
    f"train.steps={STEPS}",
    f"train.batch_size={BATCH}",
    f"data.sequence_length={LENGTH}",
    "train.log_every=1",
    "train.eval_every=50",
    "optimizer.learning_rate=0.002",
    "optimizer.warmup_fraction=0.1",
    "parallel.strategy=jit",
]


def words(rng, count):
    return ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(count)]


def classes(rng):
    texts = [words(rng, 8) for _ in range(60)]
    return [{"text": " ".join(text), "pair": text[0], "label": "no" if text[0] < "d" else "yes"} for text in texts]


def questions(rng):
    rows = [(words(rng, 3), words(rng, 9), rng.integers(0, 9)) for _ in range(60)]
    return [{"question": " ".join(q), "context": " ".join(c), "answers": c[place]} for q, c, place in rows]


def sentences(rng):
    texts = [words(rng, 7) for _ in range(60)]
    return [{"words": text, "tags": ["O" if word < "d" else "B-X" for word in text]} for text in texts]


def responses(rng):
    rows = [words(rng, 4) for _ in range(60)]
    return [{"prompt": " ".join(text), "response": " ".join(text[::-1])} for text in rows]


def as_classes(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids", "labels")}


def as_spans(batch):
    names = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")
    return {key: batch[key] for key in names}


def as_tags(batch):
    return as_classes(batch) | {"labels": np.where(batch["loss_mask"] > 0, batch["labels"], -100)}


def as_responses(batch):
    """Their model shifts the labels itself."""
    ids = np.concatenate([batch["input_ids"][:, :1], batch["labels"]], axis=1)
    counted = np.concatenate([np.zeros((len(ids), 1)), batch["loss_mask"]], axis=1) > 0
    return {"input_ids": ids, "labels": np.where(counted, ids, -100)}


CASES = {
    "BertForSequenceClassification": ("classification", classes, as_classes, ("no", "yes")),
    "BertForQuestionAnswering": ("question_answering", questions, as_spans, None),
    "BertForTokenClassification": ("tagging", sentences, as_tags, ("O", "B-X")),
    "OpenAIGPTLMHeadModel": ("sft", responses, as_responses, None),
}


def make_folder(name, labels, tokenizer, folder):
    """A model of theirs at random, with its tokenizer."""
    torch.manual_seed(0)
    kind, sizes = (transformers.BertConfig, BERT) if name.startswith("Bert") else (transformers.OpenAIGPTConfig, GPT)
    named = {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}} if labels else {}
    config = kind(**sizes | {"vocab_size": vocabulary_size(tokenizer), "initializer_range": 0.1} | named)
    reference = getattr(transformers, name)(config)
    reference.save_pretrained(folder)
    if name == "BertForQuestionAnswering":  # its softmax reads padding, whose embedding torch would not train
        reference.bert.embeddings.word_embeddings.padding_idx = None
    bertgpt.tokenizers.save_tokenizer(tokenizer, folder)
    return reference


def train_theirs(reference, batches, settings):
    """AdamW with its usual groups, the same schedule, the gradient's norm clipped."""
    plain = {
        name for name, _ in reference.named_parameters() if name.endswith("bias") or "Norm" in name or ".ln_" in name
    }
    groups = [
        {
            "params": [p for name, p in reference.named_parameters() if (name in plain) == is_plain],
            "weight_decay": decay,
        }
        for is_plain, decay in ((False, settings.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, eps=settings.eps)
    schedule, curve = make_schedule(settings, STEPS), []
    for step, batch in zip(range(STEPS), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.zero_grad()
        loss = reference(**{key: torch.tensor(value, dtype=torch.long) for key, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_of_finetuning_have_equal_losses(name, wordpiece, bpe, tmp_path, measured):
    kind, make_rows, as_theirs, labels = CASES[name]
    tokenizer = wordpiece if name.startswith("Bert") else add_tokens(bpe, task_tokens(kind))
    reference = make_folder(name, labels, tokenizer, tmp_path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(np.random.default_rng(0)))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    data = [f"data.{split}={tmp_path / 'rows.jsonl'}" for split in ("train", "eval")]
    arguments = [
        *OPTIONS,
        *data,
        f"task.kind={kind}",
        f"model.init_from={tmp_path / 'model'}",
        f"out={tmp_path / 'run'}",
    ]
    arguments += ["task.pair=pair"] if kind == "classification" else []
    assert main(["finetune", str(tmp_path / "run.yaml"), *arguments]) == 0
    ours = [row["loss"] for row in read_metrics(tmp_path / "run") if row["split"] == "train"]

    settings = configs.load(str(tmp_path / "run.yaml"), arguments)
    job = finetuning.make_job(settings, finetuning.find_initial_model(settings), task_rows.read_splits(settings))
    batches = map(as_theirs, loader.batches(job.train_source, BATCH, settings.seed))
    theirs = train_theirs(reference.train(), batches, settings.optimizer)
    assert measured(name, "50 losses of fine-tuning", float(abs(np.array(ours) - theirs).max())) <= 1e-3
    assert np.mean(theirs[-5:]) < theirs[0] - 0.1  # it learns


def test_their_tokenizer_reads_the_tokens_that_a_task_added(bpe, tmp_path):
    tokenizer = add_tokens(bpe, task_tokens("classification"))
    config = bertgpt.presets.gpt1(
        hidden_size=16, num_heads=2, num_layers=1, mlp_size=64, vocab_size=vocabulary_size(tokenizer), labels=("a", "b")
    )
    model = bertgpt.OpenAIGPTForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 4), np.int32))["params"]
    bertgpt.save_pretrained(tmp_path / "model", model, params, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "_start_ cab feed _delimiter_ face _classify_"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").id2label == {0: "a", 1: "b"}
