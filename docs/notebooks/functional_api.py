# %% [markdown]
# # The functional API, step by step
#
# To see how models, masks, losses and optax fit together, read or run this notebook. A model is a flax.linen module,
# its parameters are a plain nested dictionary, and everything else is a function of arrays. There is no trainer here.
#
# It needs matplotlib and optax (`pip install "bertgpt[train]"`), and in its last part a clone of the repository. It
# runs on a CPU. The source is [docs/notebooks/functional_api.py](../docs/notebooks/functional_api.py), a Python file
# that Jupyter opens as a notebook if jupytext is installed. `make notebooks` runs it and writes this page.

# %%
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax.traverse_util import flatten_dict

import bertgpt
from bertgpt import data, losses, masks
from bertgpt.tokenizers import train_bpe, train_wordpiece

plt.rcParams |= {"figure.dpi": 110, "figure.constrained_layout.use": True, "axes.spines.top": False}
plt.rcParams |= {"axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## A preset is a configuration
#
# A preset is a function that returns a `ModelConfig`. Any field can be given as a keyword. `jax.eval_shape` finds the
# shapes of all parameters without computing them, so this table takes no memory.

# %%
print(f"{'preset':12} {'layers':>6} {'width':>6} {'heads':>6} {'parameters':>12}")
for name in ("bert_tiny", "bert_mini", "bert_small", "bert_medium", "bert_base", "bert_large", "gpt1"):
    config = getattr(bertgpt.presets, name)()
    encoder = (bertgpt.OpenAIGPTModel if config.causal else bertgpt.BertModel)(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    print(f"{name:12} {config.num_layers:6} {config.hidden_size:6} {config.num_heads:6} {count:12,}")

# %% [markdown]
# ## Text, tokenizer, batch
#
# The text is the beginning of *Alice's Adventures in Wonderland* (Lewis Carroll, 1865). A WordPiece vocabulary is
# trained on it. `data.mask_tokens` makes a batch for masked language modelling: 15 % of the tokens are predicted, of
# which 80 % become `[MASK]`, 10 % a random token, and 10 % stay.

# %%
TEXT = """
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.
Once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it.
So she was considering in her own mind whether the pleasure of making a daisy-chain would be worth the trouble.
Suddenly a White Rabbit with pink eyes ran close by her.
There was nothing so very remarkable in that.
Nor did Alice think it so very much out of the way to hear the Rabbit say to itself, Oh dear! I shall be late!
The Rabbit actually took a watch out of its waistcoat-pocket, and looked at it, and then hurried on.
Alice started to her feet, for she had never before seen a rabbit with a watch to take out of a pocket.
"""
sentences = TEXT.strip().splitlines()
tokenizer = train_wordpiece(sentences * 20, 400)
tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))
ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(sentences)])  # [B T]
batch = data.mask_tokens(ids, tokenizer, seed=0)
for name, array in batch.items():
    print(f"{name:17} {array.dtype!s:8} {array.shape}")

# %% [markdown]
# One row, as the model reads it, and what it has to predict. Positions and labels are arrays, so that the number of
# predictions may differ from row to row under one compiled program: `loss_mask` is 0 where a row has fewer.

# %%
row = {name: array[3] for name, array in batch.items()}
print(" ".join(tokenizer.id_to_token(token) for token in row["input_ids"] if token))
for position, label, weight in zip(row["masked_positions"], row["labels"], row["loss_mask"], strict=True):
    print(f"position {position:2}: {tokenizer.id_to_token(label)!r}, weight {weight:g}")

# %% [markdown]
# ## Init and apply
#
# `init` takes a random key and one input, and returns the parameters. `apply` takes parameters and inputs, and
# returns a `ModelOutput`. Neither has any state. Without `masked_positions` there are logits for every position; with
# it, only for those.

# %%
config = bertgpt.presets.bert_tiny(vocab_size=tokenizer.get_vocab_size(), hidden_dropout=0.0, attention_dropout=0.0)
model = bertgpt.BertForMaskedLM(config)
params = model.init(jax.random.key(0), ids)["params"]
for path, leaf in list(flatten_dict(params, sep="/").items())[:8]:
    print(f"{path:52} {leaf.shape}")

everywhere = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"])
masked = model.apply(
    {"params": params}, batch["input_ids"], batch["attention_mask"], masked_positions=batch["masked_positions"]
)
print("\nlogits", everywhere.logits.shape, "or, at the masked positions,", masked.logits.shape)

# %% [markdown]
# ## Three masks, three arrays
#
# Prompts, padding, packing and direction are data, not control flow. The masks are:
#
# 1. **Which tokens are real**: `attention_mask` [B T], 0 on padding.
# 2. **Who may attend to whom**: a GPT-1 lets no token see later ones (`causal`), and in packed rows, `pack_ids` [B T]
#    keep examples apart. The model takes these vectors; `bertgpt.masks` shows the matrix that they stand for, [B 1 T
#    S], which is the AND of all of them.
# 3. **What counts in the loss**: `loss_mask`, with the shape of the labels.

# %%
words = ["[CLS]", "a", "white", "rabbit", "[SEP]", "[CLS]", "oh", "dear", "[SEP]", "[PAD]"]
attention_mask = jnp.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
pack_ids = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]])
vectors = {"attention_mask": attention_mask, "pack_ids": pack_ids}
single = {
    "causal": masks.causal_mask(len(words)),
    "padding": masks.padding_mask(attention_mask),
    "packed": masks.packed_mask(pack_ids),
}
combined = {
    "BERT: padding AND packed": masks.dense_mask(len(words), causal=False, **vectors),
    "GPT-1: all three": masks.dense_mask(len(words), causal=True, **vectors),
}


def draw(panels):
    _, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.9), sharey=True)
    for axis, (title, mask) in zip(axes, panels.items(), strict=True):
        axis.imshow(np.broadcast_to(mask[0, 0], (len(words), len(words))), cmap="Blues", vmin=0, vmax=1.4)
        axis.set_title(title)
        axis.set_xticks(np.arange(len(words)), words, rotation=90)
        axis.set_yticks(np.arange(len(words)), words)
        axis.set_xticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1.5)
        axis.tick_params(which="both", length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("query: this token ...")
    axes[-1].set_xlabel("key: ... may attend to this one (blue)")
    plt.show()


# %% Three masks of queries and keys: causal is a triangle, padding lacks the last column, packed has two blocks
draw(single)

# %% The masks of a packed row: for BERT two blocks, for GPT-1 two triangles
draw(combined)

# %% [markdown]
# The last row of both combined masks is empty: padding attends to nothing, and its output is not used. In a packed
# row, each example also gets positions that start from 0. Its outputs then equal those of the same example in a row
# of its own:

# %%
first, second = (tokenizer.encode(sentence).ids for sentence in sentences[3:5])
packed = np.array([first + second])
places = np.array([[*range(len(first)), *range(len(second))]])
numbers = np.array([[1] * len(first) + [2] * len(second)])
together = model.apply({"params": params}, packed, position_ids=places, pack_ids=numbers).logits[0]
alone = [model.apply({"params": params}, np.array([row])).logits[0] for row in (first, second)]
difference = abs(together - jnp.concatenate(alone)).max()
print(f"largest difference of the logits: {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## A loss is a sum and a weight
#
# A loss function returns a `SumWeight`: the sum over what counts, and how much counts. Such pairs are added over
# micro-batches, devices and hosts, and divided once. A mean of means would be wrong, because the parts have different
# numbers of masked tokens:


# %%
def loss_of(params, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "masked_positions")}
    return losses.mlm_loss(model.apply({"params": params}, **inputs).logits, batch)


whole = loss_of(params, batch)
parts = [loss_of(params, {name: array[rows] for name, array in batch.items()}) for rows in (slice(0, 3), slice(3, 8))]
total = losses.SumWeight(*(sum(values) for values in zip(*parts, strict=True)))
print(f"whole batch: sum {whole.sum:.3f}, weight {whole.weight:g}, mean {whole.mean():.5f}")
for part in parts:
    print(f"a part:      sum {part.sum:.3f}, weight {part.weight:g}, mean {part.mean():.5f}")
print(f"added:       mean {total.mean():.5f}; mean of the means {np.mean([part.mean() for part in parts]):.5f}")
np.testing.assert_allclose(total.mean(), whole.mean(), rtol=1e-5)

# %% [markdown]
# ## Gradient, update, loop
#
# The rest is JAX and optax. `step` is a pure function, compiled once. It takes parameters, the state of the optimizer
# and a batch. To show that the parts fit, a tiny BERT learns these eight sentences by heart, with other masks in each
# step.

# %%
optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 20, 300))


@jax.jit
def step(params, state, batch):
    value, gradient = jax.value_and_grad(lambda params: loss_of(params, batch).mean())(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


trained, state, curve = params, optimizer.init(params), []
for number in range(300):
    fresh = data.mask_tokens(ids, tokenizer, seed=1 + number)
    trained, state, value = step(trained, state, fresh)
    curve.append(float(value))
held = float(loss_of(trained, batch).mean())  # masks that were not used
print(f"first step {curve[0]:.2f}, last steps {np.mean(curve[-20:]):.2f}, masks that were not used {held:.2f}")
print(bertgpt.fill_mask(model, trained, tokenizer, "Suddenly a White [MASK] with pink eyes ran close by her.")[0][0])
assert np.mean(curve[-20:]) < 0.2 * curve[0]

# %% The loss of the tiny BERT falls from about 6 nats to nearly 0 in 300 steps
figure, axis = plt.subplots(figsize=(6, 2.6))
axis.plot(curve, color="tab:blue", linewidth=1)
axis.axhline(np.log(config.vocab_size), color="gray", linestyle="--", linewidth=1)
axis.annotate("all tokens equally likely", (300, np.log(config.vocab_size)), ha="right", va="bottom", color="gray")
axis.set(xlabel="step", ylabel="MLM loss in nats", ylim=(0, None))
plt.show()

# %% [markdown]
# ## One gradient for each example
#
# `jax.vmap` over the rows gives the gradient of each example in one call. With the loss as a sum, the gradient of the
# batch is the sum of the examples' gradients, divided by the weight. ([Recipes](recipes.md#per-example-gradients)
# clips them.)


# %%
def sum_of_row(params, row):
    return loss_of(params, jax.tree.map(lambda array: array[None], row)).sum


per_example = jax.jit(jax.vmap(jax.grad(sum_of_row), in_axes=(None, 0)))(params, batch)  # each leaf [B ...]
added = jax.tree.map(lambda leaf: leaf.sum(0) / whole.weight, per_example)
expected = jax.grad(lambda params: loss_of(params, batch).mean())(params)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), added, expected)
norms = jnp.sqrt(sum((leaf.reshape(len(ids), -1) ** 2).sum(1) for leaf in jax.tree.leaves(per_example)))

# %% Norm of the gradient of each of the eight sentences, as bars
figure, axis = plt.subplots(figsize=(7, 2.4))
axis.barh(np.arange(len(norms)), norms, color="tab:blue")
axis.set_yticks(np.arange(len(norms)), [" ".join(sentence.split()[:6]) + " ..." for sentence in sentences])
axis.invert_yaxis()
axis.set_xlabel("norm of the example's gradient")
plt.show()

# %% [markdown]
# ## The same block, causal: GPT-1
#
# A GPT-1 is the same block with `causal` set, trained on the next token. Labels are the inputs, shifted by one;
# `loss_mask` is 0 on padding. No output depends on later tokens:

# %%
bpe = train_bpe(sentences * 20, 400)
rows = [encoding.ids for encoding in bpe.encode_batch(sentences)]
longest = max(map(len, rows))
padded = np.array([row + [0] * (longest - len(row)) for row in rows])  # [B T + 1]
real = np.array([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in rows], np.float32)
stories = {"input_ids": padded[:, :-1], "labels": padded[:, 1:], "loss_mask": real[:, 1:]}

small = {"num_layers": 2, "hidden_size": 128, "num_heads": 2, "mlp_size": 512, "vocab_size": bpe.get_vocab_size()}
gpt = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**small))
gpt_params = gpt.init(jax.random.key(0), stories["input_ids"])["params"]

changed = stories["input_ids"].copy()
changed[:, 7] += 1
before, after = (gpt.apply({"params": gpt_params}, ids).logits for ids in (stories["input_ids"], changed))
differs = np.flatnonzero(abs(before - after).max((0, 2)) > 1e-5)
print(f"token 7 was changed; the first position whose logits differ is {differs[0]}")
assert differs[0] == 7

# %% [markdown]
# It learns the sentences by heart. `bertgpt.generate` then continues a prompt, with the likeliest token each time or
# with samples. Two sentences begin with *Alice*, so samples take either way.


# %%
@jax.jit
def gpt_step(params, state, batch):
    def loss(params):
        return losses.lm_loss(gpt.apply({"params": params}, batch["input_ids"]).logits, batch).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


gpt_state = optimizer.init(gpt_params)
for _ in range(300):
    gpt_params, gpt_state, value = gpt_step(gpt_params, gpt_state, stories)
print(f"loss after 300 steps: {value:.3f} nats")


def continued(prompt, **options):
    ids = bertgpt.generate(
        gpt, gpt_params, [bpe.encode(prompt).ids], max_new_tokens=24, stop_strings=".", tokenizer=bpe, **options
    )
    return bpe.decode(ids[0].tolist())


likeliest = continued("suddenly a white")
print("likeliest:", likeliest)
for seed in range(3):
    print("sample:   ", continued("alice", temperature=0.6, key=jax.random.key(seed)))
assert "rabbit with pink eyes ran close by her" in likeliest

# %% [markdown]
# ## Inside a trained encoder
#
# A loaded model is the same pair of module and parameters. This one is all-MiniLM-L6-v2, an encoder of 6 layers for
# sentence embeddings, which a script of the repository takes from a package. A name on the Hugging Face hub works in
# the same place. `bertgpt.embed` returns one vector for each text:

# %%
os.chdir(next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "benchmarks").exists()))
sys.path.insert(0, "")  # the root of the clone, where `benchmarks` is

from benchmarks import demo_data

demo_data.write_encoder(Path("runs/demo_data"))
minilm, weights = bertgpt.load_pretrained("runs/demo_data/encoder")
pieces = bertgpt.load_tokenizer("runs/demo_data/encoder")
texts = [
    "The violin has four strings.",
    "She plays the cello in an orchestra.",
    "A viola is larger than a violin.",
    "Rabbits live in holes in the ground.",
    "A hare is faster than a rabbit.",
    "Foxes hunt rabbits and hares.",
    "The bank raised its interest rate.",
    "She opened a savings account at a bank.",
    "The rate of this loan is fixed.",
]
states = bertgpt.embed(minilm, weights, pieces, texts)  # [N D]
states /= np.linalg.norm(states, axis=1, keepdims=True)
similarity = states @ states.T
topic = np.arange(len(texts)) // 3
same, other = topic[:, None] == topic, topic[:, None] != topic
np.fill_diagonal(same, False)
print(f"mean cosine: same topic {similarity[same].mean():.2f}, other topic {similarity[other].mean():.2f}")
assert similarity[same].mean() > similarity[other].mean()

# %% Cosine similarity of nine sentences: three blocks, instruments, animals and banks, stand out
figure, axis = plt.subplots(figsize=(5.6, 3.4))
image = axis.imshow(similarity, cmap="Blues", vmin=0, vmax=1)
axis.set_yticks(np.arange(len(texts)), texts)
axis.set_xticks([])
axis.spines[:].set_visible(False)
figure.colorbar(image, label="cosine", shrink=0.7)
plt.show()

# %% [markdown]
# With `output_attentions=True`, the output has the attention probabilities of each layer, [B H T S]. Here they are
# averaged over the 12 heads. Each row sums to 1: it says where a token looks. Much of it goes to `[CLS]`.

# %% Attention of each of the six layers of the encoder on one sentence, averaged over heads
encoding = pieces.encode("The rabbit ran because it was late.")
attentions = minilm.apply({"params": weights}, np.array([encoding.ids]), output_attentions=True).attentions
figure, axes = plt.subplots(2, 3, figsize=(9, 6), sharex=True, sharey=True)
for number, (axis, probabilities) in enumerate(zip(axes.flat, attentions, strict=True), 1):
    axis.imshow(probabilities[0].mean(0), cmap="Blues", vmin=0, vmax=0.6)
    axis.set_title(f"layer {number}")
    axis.set_xticks(np.arange(len(encoding.tokens)), encoding.tokens, rotation=90)
    axis.set_yticks(np.arange(len(encoding.tokens)), encoding.tokens)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## Further
#
# - [Recipes](recipes.md) change a model without forking it: LoRA, adapters, head ablation, saliency, distillation,
#   ensembles, a mesh, Flax NNX.
# - [What a model returns](outputs.md) lists the fields of every class, [data](data.md#batches) the keys of a batch.
# - [Continue an encoder](continue_encoder.md) is a notebook on real text.
