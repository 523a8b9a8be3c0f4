"""The training step: tokens per second, memory and compile time; optionally compared with transformers.

python -m benchmarks.train_step [--model bert_base] [--batch 16] [--length 128] [--dtype float32]
python -m benchmarks.train_step --dtype bfloat16 --against transformers
python -m benchmarks.train_step --data demo --length 512 --pack --against transformers --pad longest
python -m benchmarks.train_step --model bert_tiny --host

A step is the whole update with dropout and AdamW, for masked tokens and next sentence (BERT) or next tokens (GPT-1).
transformers has the same sizes and batches, its own loss, and fused AdamW. It runs under torch.compile, with bf16
autocast for --dtype bfloat16, and BERT with SDPA. For this comparison bertgpt uses one device. A timing takes at least
one second.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import host_time, side_by_side
from benchmarks.corpus import demo_split
from benchmarks.host_time import HostTime
from benchmarks.side_by_side import Make, Range, Work
from bertgpt import presets
from bertgpt.config import ModelConfig
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.model.attention import Request, chosen
from bertgpt.tokenizers import train_wordpiece
from train import flops, parallel
from train.folders.run_folder import fitting_objective
from train.jobs import objectives
from train.loader import Source
from train.optimizers import make_optimizer
from train.sections import OptimizerSection, ParallelSection, RunConfig
from train.state import create_state
from train.step import eval_step, real_tokens, train_step

Batch = dict[str, np.ndarray]
BATCHES = 4  # used in turn
DOCUMENTS, SENTENCES, WORDS = 400, 20, (5, 45)  # random text: documents, mean sentences of one, tokens per sentence
FIRST_ID = 30  # smaller ids are special tokens
DEFAULTS = {"bert": (16, 128), "gpt": (4, 512)}  # rows per batch, tokens per row
OPTIMIZER = OptimizerSection(schedule="constant")
REPORTED = "real_tokens"


def sizes(config: ModelConfig, batch: int | None, length: int | None) -> tuple[int, int]:
    """Return the rows of a batch and the tokens of a row; None: the defaults of the architecture.

    Raises:
        InputError: a value is out of range.
    """
    given = zip((batch, length), DEFAULTS[config.architecture], strict=True)
    batch, length = (usual if size is None else size for size, usual in given)
    if not 8 <= length <= config.max_positions:
        raise InputError(f"--length is {length}; it must be from 8 to {config.max_positions}")
    if batch < 1:
        raise InputError(f"--batch is {batch}; it must be at least 1")
    return batch, length


def random_split(vocab_size: int) -> Split:
    """Return random ids in documents whose lengths vary as in an encyclopedia."""
    rng = np.random.default_rng(0)
    documents = np.concatenate([[0], np.cumsum(rng.geometric(1 / SENTENCES, DOCUMENTS))])
    sentences = np.concatenate([[0], np.cumsum(rng.integers(*WORDS, documents[-1]))])
    tokens = rng.integers(FIRST_ID, vocab_size, sentences[-1]).astype(np.uint16)
    return Split(tokens, sentences, documents, np.bincount(tokens, minlength=vocab_size), 6 * len(tokens))


def make_run(config: ModelConfig, batch: int, length: int) -> RunConfig:
    """Return the settings of a training run; the others are the defaults."""
    run = RunConfig()
    run.data.sequence_length, run.train.objective = length, fitting_objective(config.architecture, ())
    run.train.batch_size = batch
    return run


def make_sources(config: ModelConfig, data: str, run: RunConfig, *packs: bool) -> list[Source]:
    """Return the examples of the same text for each value of `packs`."""
    if data == "demo":
        split, tokenizer = demo_split()
    else:
        split, tokenizer = random_split(config.vocab_size), train_wordpiece(["a b"], FIRST_ID)
    made = []
    for run.data.pack in packs:
        made.append(objectives.train_source(split, tokenizer, run))
    return made


def make_batches(config: ModelConfig, data: str, batch: int, length: int, *packs: bool) -> list[list[Batch]]:
    """Return batches of the same text for each value of `packs`, created as in a training run."""
    made = []
    for source in make_sources(config, data, make_run(config, batch, length), *packs):
        rows = np.random.default_rng(0).integers(0, len(source), (BATCHES, batch))
        made.append([source.batch(numbers) for numbers in rows])
    return made


def amounts(config: ModelConfig, batches: list[Batch]) -> list[dict[str, float]]:
    """Return the amounts of each batch. FLOPs are as in flops.py: vocabulary logits only at masked positions."""
    return [
        {
            "tokens": batch["input_ids"].size,
            "real_tokens": int(real_tokens(batch)),
            "flops": flops.step_flops(config, batch),
        }
        for batch in batches
    ]


class OurStep:
    """The step of `python -m train pretrain`, with its state."""

    def __init__(
        self, config: ModelConfig, dtype: str, remat: str, batches: list[Batch], section: ParallelSection
    ) -> None:
        self.strategy, self.batches = parallel.make_strategy(section, dtype), batches
        parallel.check_batch(len(batches[0]["input_ids"]), 1, self.strategy)
        name = fitting_objective(config.architecture, ())
        model, optimizer = objectives.make_model(name, config, dtype, remat), make_optimizer(OPTIMIZER, 1)
        objective = objectives.make_objective(name, model)
        self.train, _ = parallel.compile_steps(
            self.strategy,
            functools.partial(train_step, objective=objective, optimizer=optimizer),
            functools.partial(eval_step, objective=objective),
        )
        create = self.strategy.compile_init(functools.partial(create_state, model, optimizer, 0))
        self.state = self.strategy.put_state(create(None))
        self.metrics: dict[str, Any] = {}

    def step(self, number: int) -> None:
        """Move a batch to the devices, and start an update."""
        self.state, self.metrics = self.train(self.state, self.strategy.put_batch(self.batches[number]))

    def wait(self) -> None:
        """Wait until all updates are done."""
        jax.block_until_ready((self.state, self.metrics))


def ours(config: ModelConfig, dtype: str, remat: str, batches: list[Batch], section: ParallelSection) -> Work:
    """Work: bertgpt's step."""
    made = OurStep(config, dtype, remat, batches, section)
    sizes = batches[0]["input_ids"].shape[1], config.num_heads, config.hidden_size // config.num_heads
    kernel = chosen(Request(jax.devices()[0], dtype, *sizes, config.attention_dropout))
    about = side_by_side.jax_about(made.strategy.devices)
    about |= {"runs": f"{made.strategy.name}, attention: {kernel.name}"}
    return Work(made.step, made.wait, amounts(config, batches), about, side_by_side.jax_peak_bytes)


def shorten(batch: Batch) -> Batch:
    """Remove the padding beyond the longest row."""
    shape = batch["input_ids"].shape
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest] if value.shape == shape else value for name, value in batch.items()}


def their_inputs(batch: Batch) -> dict[str, Any]:
    """Return a batch under transformers' names. BERT's labels cover all positions; -100 means no label."""
    if "masked_positions" not in batch:
        labels = np.where(batch["loss_mask"] > 0, batch["labels"], -100)
        return {"input_ids": batch["input_ids"], "labels": labels, "shift_labels": labels}  # shifted already
    labels = np.full(batch["input_ids"].shape, -100)
    rows, places = np.nonzero(batch["loss_mask"])
    labels[rows, batch["masked_positions"][rows, places]] = batch["labels"][rows, places]
    shared = ("input_ids", "attention_mask", "token_type_ids", "next_sentence_label")
    return {name: batch[name] for name in shared} | {"labels": labels}


def their_model(config: ModelConfig) -> Any:
    """Return transformers' model of the same sizes, on torch's device."""
    import torch
    import transformers

    names = {"bert": ("BertConfig", "BertForPreTraining"), "gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel")}
    kind, reference = (getattr(transformers, name) for name in names[config.architecture])
    torch.manual_seed(0)
    model = reference(kind(**their_sizes(config)))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").train()


def their_sizes(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of BertConfig or OpenAIGPTConfig."""
    if config.architecture == "bert":
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_size,
            "max_position_embeddings": config.max_positions,
            "hidden_dropout_prob": config.hidden_dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "attn_implementation": "sdpa",
        }
    if config.mlp_size != 4 * config.hidden_size:
        raise InputError(
            f"mlp_size is {config.mlp_size}, and the GPT-1 of transformers always has 4 x hidden_size; "
            "choose another --model"
        )
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "embd_pdrop": config.hidden_dropout,
        "resid_pdrop": config.hidden_dropout,
        "attn_pdrop": config.attention_dropout,
    }


def their_optimizer(model: Any) -> Any:
    """Return AdamW as in transformers' Trainer: fused, without weight decay on biases and norms."""
    import torch

    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": OPTIMIZER.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, eps=OPTIMIZER.eps, fused=True)


def theirs(config: ModelConfig, dtype: str, batches: list[Batch]) -> Work:
    """Work: the same step with transformers and torch: forward, backward, gradient clipping, AdamW."""
    import torch

    about = side_by_side.torch_about()
    model = their_model(config)
    optimizer, device = their_optimizer(model), model.device
    attention = "SDPA" if model.config._attn_implementation == "sdpa" else "eager attention"
    about["runs"] = f"torch.compile, {attention}"
    forward = [torch.compile(model)]
    inputs = [
        {name: torch.tensor(value, dtype=torch.long) for name, value in their_inputs(batch).items()}
        for batch in batches
    ]

    def update(number: int) -> None:
        optimizer.zero_grad()
        batch = {name: value.to(device) for name, value in inputs[number].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward[0](**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()

    def step(number: int) -> None:
        try:
            update(number)
        except Exception as error:
            if forward[0] is model:
                raise
            forward[0] = model
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            about["runs"] = f"eager, since torch.compile failed ({reason[:100]}), {attention}"
            update(number)

    return Work(step, side_by_side.torch_wait, amounts(config, batches), about, side_by_side.torch_peak_bytes)


def measure_host(options: argparse.Namespace, config: ModelConfig, seconds: float) -> HostTime:
    """Return the host's time beside a step of the given duration."""
    run = make_run(config, options.batch, options.length)
    (source,) = make_sources(config, options.data, run, options.pack)
    name = str(run.train.objective)
    objective = objectives.make_objective(name, objectives.make_model(name, config, options.dtype, options.remat))
    return host_time.measure(run, objective, source, ParallelSection(data=-1), seconds)


def make_sides(options: argparse.Namespace, config: ModelConfig) -> dict[str, Make]:
    """Return bertgpt's side and, with --against, transformers'; only bertgpt packs rows."""
    beside = options.against is not None
    sizes = (options.data, options.batch, options.length)
    mine, *others = make_batches(config, *sizes, *([options.pack, False] if beside else [options.pack]))
    section = ParallelSection(data=1 if beside else -1)
    sides: dict[str, Make] = {"bertgpt": (ours, config, options.dtype, options.remat, mine, section)}
    if beside:
        shorter = options.pad == "longest" and config.architecture == "bert"
        padded = [shorten(batch) if shorter else batch for batch in others[0]]
        sides["transformers"] = (theirs, config, options.dtype, padded)
    return sides


def row(name: str, result: dict[str, Any]) -> str:
    """Format a side as a row of the table."""
    used = side_by_side.utilisation(result)
    cells = [side_by_side.show(side_by_side.of(result, key)) for key in ("tokens", REPORTED)]
    cells.append("unknown" if used is None else f"{used.median:.1%}")
    cells.append(side_by_side.memory(result))
    cells.append(f"{result['compile_seconds']:.1f} s")
    return f"| {name} | " + " | ".join(cells) + " |"


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, ModelConfig]:
    """Return the options, with the default batch of the architecture filled in, and the model's configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert_base", choices=presets.ALL)
    parser.add_argument("--batch", type=int, help="rows per batch (default: 16 for BERT, 4 for GPT-1)")
    parser.add_argument("--length", type=int, help="tokens per row (default: 128 for BERT, 512 for GPT-1)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention-dropout", type=float, default=0.1)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--data", default="random", choices=("random", "demo"), help="random ids, or the demo corpus")
    parser.add_argument("--pack", action="store_true", help="pack several examples into a row (bertgpt only)")
    parser.add_argument("--against", choices=("transformers",))
    parser.add_argument(
        "--host",
        action="store_true",
        help="also measure the host's time per step: that of the training loop on its thread, with an empty step in "
        "place of the real one, and a pause of the real one's duration that is not counted. It is the time to get the "
        "next batch from the loader, check and send it and start the step, and the step's share of a log line",
    )
    parser.add_argument(
        "--pad",
        default="full",
        choices=("full", "longest"),
        help="pad transformers' rows to --length, or to the longest row of the batch (BERT only)",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=side_by_side.OUT)
    options = parser.parse_args(arguments)
    config = presets.get(options.model, attention_dropout=options.attention_dropout)
    options.batch, options.length = sizes(config, options.batch, options.length)
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}; it must be at least 1")
    return options, config


def name_of(options: argparse.Namespace) -> str:
    """Return the name of the output files, which differs per setting."""
    parts = [options.model, f"{options.batch}x{options.length}", options.dtype, options.data]
    parts += [f"attention_dropout_{options.attention_dropout:g}"] if options.attention_dropout != 0.1 else []
    parts += [f"remat_{options.remat}"] if options.remat != "none" else []
    parts += ["packed"] if options.pack else []
    parts += [f"against_{options.against}_{options.pad}"] if options.against else []
    return "_".join(["train_step", *parts])


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write it to files."""
    options, config = parse(arguments)
    if options.against:
        side_by_side.need_transformers()
    results = side_by_side.measure(make_sides(options, config), options.repeats)
    title = f"{options.model}, {options.batch} x {options.length}, {options.dtype}, {options.data} data"
    print(f"{title}, dropout {config.hidden_dropout:g}, attention dropout {config.attention_dropout:g}")
    for line in side_by_side.describe(results):
        print(line)
    print("| side | tokens/s | real tokens/s | MFU | peak memory | compile |\n|---|---|---|---|---|---|")
    for name, result in results.items():
        print(row(name, result))
    report: dict[str, Any] = {"options": vars(options), "sides": results}
    if options.against:
        report["ratio"] = found = side_by_side.ratio(results["bertgpt"], results["transformers"], REPORTED)
        print(f"real tokens/s, bertgpt / transformers: {side_by_side.show(found, 2)}")
    if options.host:
        seconds = side_by_side.of(results["bertgpt"], "seconds").median
        report["host"] = host = measure_host(options, config, seconds)
        print(host_time.describe(host, seconds))
    bars: dict[str, Range] = {name: side_by_side.of(result, REPORTED) for name, result in results.items()}
    device = results["bertgpt"]["about"]["device"]
    side_by_side.write(options.out, name_of(options), report, bars, f"{title}\n{device}: {REPORTED.replace('_', ' ')}")


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
