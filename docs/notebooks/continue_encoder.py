# %% [markdown]
# # Continue an encoder on your own text, then fine-tune it
#
# To adapt a public BERT to a domain, continue its masked language modelling on the domain's text. Then fine-tune the
# result on your labels. This notebook does both with a small real encoder, and compares the fine-tuned model with one
# that was not continued.
#
# - **Encoder**: all-MiniLM-L6-v2 (6 layers of width 384, Apache-2.0), which was trained for sentence embeddings.
# - **Text and labels**: 503 questions and answers about building in Sweden, in 39 categories
#   (zaragoza-construction-faq 1.2.1, CC BY 4.0, Zaragoza AB). The encoder does not know words such as *bygglov*, a
#   building permit.
#
# It runs in a clone after `make install`, in minutes on 2 CPU cores. Both packages are downloaded once. The source
# is [docs/notebooks/continue_encoder.py](../docs/notebooks/continue_encoder.py), a Python file that Jupyter opens as a
# notebook if jupytext is installed. `make notebooks` runs it and writes this page.

# %%
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

os.chdir(next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "benchmarks").exists()))
sys.path.insert(0, "")  # the root of the clone, where `benchmarks` is

import bertgpt
from benchmarks import baselines, demo_data
from bertgpt import data, losses

FOLDER, PACKAGES = Path("runs/notebook"), Path("runs/demo_data")
FOLDER.mkdir(parents=True, exist_ok=True)
plt.rcParams |= {"figure.dpi": 110, "figure.constrained_layout.use": True, "axes.spines.top": False}
plt.rcParams |= {"axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## The text
#
# 200 of the questions and their answers are held out: neither pretraining nor fine-tuning reads them. The others are
# the domain's text, one document for each question and its answer. Your own text takes the place of these files; it
# needs no labels.

# %%
demo_data.write_encoder(PACKAGES)
archive = demo_data.fetch("zaragoza-construction-faq", PACKAGES / "packages")
member = "zaragoza_construction_faq/data/faq-en.json"
rows = json.loads(demo_data.read_member(archive, member))["questions"]
order = np.random.default_rng(0).permutation(len(rows))
held_out, known = [rows[place] for place in order[:200]], [rows[place] for place in order[200:]]
for name, part in (("train", known), ("eval", held_out)):
    (FOLDER / f"{name}.txt").write_text("".join(f"{row['q']}\n{row['a']}\n\n" for row in part), encoding="utf-8")
print(f"\n{known[0]['q']}\n{known[0]['a']}")

# %% [markdown]
# ## The encoder and its tokenizer
#
# `load_pretrained` takes a folder or a name on the Hugging Face hub:
# `load_pretrained("google-bert/bert-base-uncased")` works the same.
#
# This encoder was published without the head that predicts masked tokens, so `load_pretrained` warns that it is
# randomly initialized. A BERT such as bert-base-uncased has its head, and needs fewer steps than this one.

# %%
ENCODER = PACKAGES / "encoder"
model, params = bertgpt.load_pretrained(ENCODER, "BertForMaskedLM")
tokenizer = bertgpt.load_tokenizer(ENCODER)
count = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"{model.config.num_layers} layers of width {model.config.hidden_size}, {count:,} parameters")
for word in ("building permit", "renovation", "waterproofing", "bygglov", "Attefallshus"):
    print(f"{word:16} {' '.join(tokenizer.encode(word, add_special_tokens=False).tokens)}")

# %% [markdown]
# The vocabulary has no entries for Swedish words, but it can spell them in pieces. That is enough here. A new
# vocabulary would throw away the embeddings that the encoder has learned.
#
# `make_store` tokenizes the text, once. `SentenceRuns` are the examples of masked language modelling: runs of whole
# sentences of one document. `pack` puts several of them into one row, which do not attend to each other. 30 % of the
# tokens are masked in training, since [a higher rate learned faster](objectives.md#mask-rate) in short runs, and 15 %
# of the held-out text.

# %%
LENGTH = 48
splits = data.make_store(
    FOLDER / "store", data.TextSource(str(FOLDER / "train.txt"), eval=str(FOLDER / "eval.txt")), tokenizer
)
source = data.pack(data.SentenceRuns(splits["train"], tokenizer, LENGTH, seed=0, rule=data.MaskRule(rate=0.3)))
runs = data.SentenceRuns(splits["eval"], tokenizer, LENGTH, seed=0)
held = runs.batch(np.arange(192))
counts = 1 + np.bincount(splits["train"].tokens, minlength=model.config.vocab_size)
frequency = np.log(counts / counts.sum())
baseline = -(frequency[held["labels"]] * held["loss_mask"]).sum() / held["loss_mask"].sum()
print(f"{len(splits['train'].tokens):,} tokens to train on, {len(splits['eval'].tokens):,} held out")
print(f"{int(held['loss_mask'].sum()):,} held-out tokens are masked; word frequencies alone give {baseline:.2f} nats")

# %% [markdown]
# ## Masks before
#
# The random head knows nothing:

# %%
PROMPTS = [
    "You need a building [MASK] from the municipality.",
    "A building [MASK] is required for an extension.",
    "The work must be done by a certified [MASK].",
    "You can claim the deduction for the labor [MASK].",
    "The warranty period is [MASK] years.",
]


def fill(model, params):
    for prompt in PROMPTS:
        best = bertgpt.fill_mask(model, params, tokenizer, prompt, top_k=4)[0]
        print(f"{prompt:52} {'  '.join(f'{token} {probability:.2f}' for token, probability in best)}")


fill(model, params)

# %% [markdown]
# ## One loop for both
#
# Pretraining and fine-tuning need the same loop. Parameters that are new (the head) learn at ten times the rate of
# the others. `step` is a pure function, compiled once for each task. Examples are numbered, and go on after an epoch
# with other masks, so an epoch is a permutation.

# %%
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pack_ids", "masked_positions")
NEW = ("mlm_head", "classifier")


def make_step(model, loss, rate, steps):
    """Return the optimizer, the compiled update, and the compiled loss without dropout."""

    def schedule(peak):
        return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps), b2=0.98)

    def groups(params):
        return {name: "new" if name in NEW else "old" for name in params}

    optimizer = optax.partition({"new": schedule(10 * rate), "old": schedule(rate)}, groups)

    def loss_of(params, batch, **options):
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        return loss(model.apply({"params": params}, **inputs, **options).logits, batch)

    @jax.jit
    def step(params, state, batch, key):
        def mean(params):
            return loss_of(params, batch, deterministic=False, rngs={"dropout": key}).mean()

        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return optimizer, step, jax.jit(loss_of)


def train(tools, params, source, steps, seed, held=None, every=20, batch_size=16):
    """Return trained parameters, and the held-out loss as pairs of step and nats."""
    (optimizer, step, score), random = tools, np.random.default_rng(seed)
    epochs = range(steps * batch_size // len(source) + 1)
    numbers = np.concatenate([epoch * len(source) + random.permutation(len(source)) for epoch in epochs])
    state, curve = optimizer.init(params), []
    for number in range(steps):
        if held is not None and number % every == 0:
            curve.append((number, float(score(params, held).mean())))
        batch = source.batch(numbers[number * batch_size :][:batch_size])
        params, state, _ = step(params, state, batch, jax.random.fold_in(jax.random.key(seed), number))
    if held is not None:
        curve.append((steps, float(score(params, held).mean())))
    return params, curve


# %% [markdown]
# ## Continue masked language modelling

# %%
STEPS = 160
continued, curve = train(make_step(model, losses.mlm_loss, 3e-4, STEPS), params, source, STEPS, 0, held)
steps, nats = zip(*curve, strict=True)
print(f"held-out loss: {nats[0]:.2f} nats before, {nats[-1]:.2f} after")
assert nats[-1] < baseline - 0.5
assert nats[-1] < nats[len(nats) // 2] < nats[0]

# %% The held-out loss falls below the line of word frequencies
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(steps, nats, color="tab:blue", marker=".")
axis.axhline(baseline, color="gray", linestyle="--", linewidth=1)
axis.annotate("word frequencies alone", (STEPS, baseline), ha="right", va="bottom", color="gray")
axis.set(xlabel="step", ylabel="held-out MLM loss in nats", ylim=(4, None), title="Text about building")
plt.show()

# %% [markdown]
# ## Masks after

# %%
fill(model, continued)
best = [bertgpt.fill_mask(model, continued, tokenizer, prompt, top_k=4)[0] for prompt in PROMPTS]
assert "permit" in [token for token, _ in best[0]]

# %% [markdown]
# The result is a model folder like any other: `AutoModelForMaskedLM.from_pretrained` of transformers reads it too.

# %%
bertgpt.save_pretrained(FOLDER / "continued", model, continued, tokenizer)

# %% [markdown]
# ## Fine-tune, with and without
#
# The task: to which category does a question belong? There are few labels, as often in practice: the ten largest
# categories, with the known questions for training and the held-out ones for the score. Both models are fine-tuned
# with several seeds, which decide the new head, the order and dropout. TF-IDF with logistic regression is a baseline
# without a neural network.

# %%
CATEGORIES = {
    "arbetsmiljo": "safety at work",
    "badrumsrenovering": "bathrooms",
    "bbr-pbl": "building law",
    "bygglov": "building permits",
    "dolda-fel": "hidden defects",
    "kontrakt": "contracts",
    "rot-avdrag": "ROT deduction",
    "rut-avdrag": "RUT deduction",
    "takläggning": "roofs",
    "verifiera-byggfirma": "checking a builder",
}
labels = tuple(CATEGORIES.values())


def labelled(rows):
    chosen = [row for row in rows if row["category"] in CATEGORIES]
    return [{"text": row["q"], "label": CATEGORIES[row["category"]]} for row in chosen]


def examples(rows):
    settings = data.TaskSettings(kind="classification")
    return data.task_examples(labelled(rows), settings, tokenizer, 24, labels=labels)


known_examples, held_examples = examples(known), examples(held_out)
held_batch = held_examples.batch(np.arange(len(held_examples)))
TUNING, SEEDS = 50, 3
class_loss = functools.partial(losses.class_loss, problem="single_label_classification")
plain, _ = bertgpt.load_pretrained(ENCODER, "BertForSequenceClassification", num_labels=len(labels))
classifier = plain.clone(config=dataclasses.replace(plain.config, labels=labels))  # with the names of the classes
tools = make_step(classifier, class_loss, 3e-4, TUNING)


@jax.jit
def guesses(params):
    inputs = {name: held_batch[name] for name in INPUTS if name in held_batch}
    return classifier.apply({"params": params}, **inputs).logits.argmax(-1)


def tune(start, seed):
    key = jax.random.key(seed)
    _, params = bertgpt.load_pretrained(start, "BertForSequenceClassification", num_labels=len(labels), key=key)
    return train(tools, params, known_examples, TUNING, seed)[0]


tuned = {
    "fine-tuned": [tune(ENCODER, seed) for seed in range(SEEDS)],
    "continued, then fine-tuned": [tune(FOLDER / "continued", seed) for seed in range(SEEDS)],
}
accuracy = {
    name: np.array([(guesses(params) == held_batch["labels"]).mean() for params in several])
    for name, several in tuned.items()
}
texts, classes = zip(*((row["text"], row["label"]) for row in labelled(known)), strict=True)
held_texts, held_classes = zip(*((row["text"], row["label"]) for row in labelled(held_out)), strict=True)
tfidf = baselines.tfidf(texts, classes, held_texts, held_classes, seed=0)
print(f"{len(known_examples)} questions to train on, {len(held_examples)} held out, {len(labels)} categories")
print(f"{'TF-IDF and logistic regression':32} {tfidf:.3f}")
for name, values in accuracy.items():
    print(f"{name:32} {values.mean():.3f} ± {values.std(ddof=1):.3f}")
difference = accuracy["continued, then fine-tuned"] - accuracy["fine-tuned"]
print(f"{'difference, seed by seed':32} {difference.mean():+.3f} ± {difference.std(ddof=1):.3f}")
assert min(values.mean() for values in accuracy.values()) > 2 / len(labels)

# %% Accuracy of each seed with and without continued pretraining, and the baseline of TF-IDF
figure, axis = plt.subplots(figsize=(6.5, 2.2))
for place, values in enumerate(accuracy.values()):
    axis.barh(place, values.mean(), color=("lightgray", "tab:blue")[place], height=0.6)
    axis.scatter(values, np.full(SEEDS, place), color="black", s=12, zorder=2)
axis.axvline(tfidf, color="gray", linestyle="--", linewidth=1)
axis.annotate(" TF-IDF", (tfidf, 1.45), color="gray")
axis.set_yticks(range(len(accuracy)), accuracy)
axis.set(xlabel="accuracy on held-out questions; a dot is a seed", xlim=(0, 1), ylim=(-0.5, 1.7))
plt.show()

# %% [markdown]
# No gain can be seen here: the difference is about one held-out question, and the seeds differ by as much. The settings
# were chosen in a few trials that looked at the same questions. The continued model knows the domain's text better, as
# its held-out loss shows; whether that helps a task has to be measured. On film reviews, [continued pretraining lowered
# the accuracy by 0.008](objectives.md#continued-pretraining-before-a-task). Gururangan et al. (2020, [arXiv
# 2004.10964](https://arxiv.org/abs/2004.10964)) report gains with RoBERTa, which has its head, after 12,500 steps on
# much larger text.
#
# ## Which categories are confused
#
# The guesses of the first continued model, and the questions it gets wrong:

# %%
found = np.asarray(guesses(tuned["continued, then fine-tuned"][0]))
confusion = np.zeros((len(labels), len(labels)), int)
np.add.at(confusion, (held_batch["labels"], found), 1)
for number in np.flatnonzero(found != held_batch["labels"])[:5]:
    right = labels[held_batch["labels"][number]]
    print(f"{held_texts[number]}\n    {right}, guessed {labels[found[number]]}")

# %% Confusion matrix of the ten categories: most questions are on the diagonal
figure, axis = plt.subplots(figsize=(5.6, 4.4))
axis.imshow(confusion, cmap="Blues")
for true, guess in np.argwhere(confusion):
    shade = "white" if confusion[true, guess] > confusion.max() / 2 else "black"
    axis.text(guess, true, confusion[true, guess], ha="center", va="center", color=shade)
axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
axis.set_yticks(range(len(labels)), labels)
axis.set(xlabel="guessed", ylabel="category")
axis.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## Save, load, predict
#
# The folder has the weights, the configuration with the names of the labels, and the tokenizer.

# %%
SAVED = FOLDER / "classifier"
bertgpt.save_pretrained(SAVED, classifier, tuned["continued, then fine-tuned"][0], tokenizer)
loaded, loaded_params = bertgpt.load_pretrained(SAVED)
np.testing.assert_array_equal(found, guesses(loaded_params))
questions = [
    {"text": "How often should a tiled roof be inspected?"},
    {"text": "Does RUT cover the cleaning of windows?"},
]
predictions = bertgpt.predict(loaded, loaded_params, bertgpt.load_tokenizer(SAVED), questions, length=24)
for row, prediction in zip(questions, predictions, strict=True):
    print(f"{row['text']:44} {prediction['label']}, probability {prediction['probability']:.2f}")

# %% [markdown]
# ## The same from the command line
#
# The trainer does both, with checkpoints, resuming, several devices and curves: [Continue a public
# BERT](continue_bert.md), then [fine-tune on your labels](finetune.md). [The functional API](functional_api.md) shows
# masks, losses and gradients one by one.
