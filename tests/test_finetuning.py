"""Every task from its file to a model that has learnt it, its scores and its predictions; resume; mistakes."""

import csv
import functools
import gzip
import io
import json
import shutil

import jax
import numpy as np
import pytest

import bertgpt
from bertgpt.data.tasks import readers
from bertgpt.tokenizers import train_bpe, train_wordpiece
from train import config as configs
from train import parallel
from train.__main__ import main
from train.folders.run_folder import find_initial_model, load_run
from train.jobs import evaluating, finetuning, task_rows
from train.jobs.planning import make_plan
from train.optimizers import make_optimizer
from train.reports import read_metrics
from train.step import train_step

pytestmark = pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")

ANIMALS, PLANTS = ("ant", "bee", "cow", "dog"), ("fir", "ivy", "oak", "yew")
TEXT = " ".join((*ANIMALS, *PLANTS, "who where near saw")) + " "
SIZES = {"hidden_size": 32, "num_heads": 2, "num_layers": 1, "max_positions": 24}
OPTIONS = [
    "data.sequence_length=24",
    "optimizer.learning_rate=0.01",
    "optimizer.warmup_steps=5",
    "train.batch_size=8",
    "train.log_every=25",
    "train.eval_every=25",
    "train.steps=50",
    "parallel.strategy=jit",
    "model.hidden_dropout=0.0",
    "model.attention_dropout=0.0",
    "model.classifier_dropout=0.0",
]
PAIRS = [(a, p) for a in ANIMALS for p in PLANTS]


def classes():
    return [{"text": word, "label": "animal" if word in ANIMALS else "plant"} for word in (*ANIMALS, *PLANTS)]


def pairs():
    words = [*PAIRS[:4], *((p, a) for a, p in PAIRS[:4])]
    return [{"text": first, "pair": second, "label": int(second in ANIMALS)} for first, second in words]


def alike():
    words = [("ant", "bee"), ("cow", "dog"), ("bee", "cow"), ("fir", "ant"), ("bee", "ivy"), ("oak", "yew")]
    return [{"text": a, "pair": b, "label": int({a, b} <= set(ANIMALS))} for a, b in words]


def several():
    return [{"text": f"{a} {p}", "label": [w for w in (a, p) if w in ("ant", "fir")]} for a, p in PAIRS[:8]]


def numbers():
    return [{"text": "ant " * count + "fir " * (4 - count), "label": count / 4} for count in range(5)]


def choices():
    return [{"text": "who", "choices": [p, a] if n % 2 else [a, p], "label": n % 2} for n, (a, p) in enumerate(PAIRS)]


def questions():
    rows = [(f"saw {p} near {a} saw", a) for a, p in PAIRS[:8]]
    return [{"question": "who", "context": text, "answers": {"text": [a]}} for text, a in rows]


def tags():
    rows = [["saw", a, "near", p] for a, p in PAIRS[:8]]
    return [{"words": words, "tags": ["O", "B-BEAST", "O", "B-PLANT"]} for words in rows]


def responses():
    return [{"prompt": f"near {a}", "response": f"saw {p}"} for a, p in zip(ANIMALS, PLANTS, strict=True)]


def long_responses():
    return [{"prompt": "near", "response": "saw " * 30}]


CASES = {  # family, rows, overrides, the figure, what it must reach
    "bert classification": ("bert", classes, ["task.kind=classification"], "accuracy", 1.0),
    "bert pairs": ("bert", pairs, ["task.kind=classification", "task.pair=pair"], "accuracy", 1.0),
    "bert multi_label": ("bert", several, ["task.kind=multi_label"], "f1", 1.0),
    "bert regression": ("bert", numbers, ["task.kind=regression"], "spearman", 0.9),
    "bert multiple_choice": ("bert", choices, ["task.kind=multiple_choice"], "accuracy", 1.0),
    "bert question_answering": ("bert", questions, ["task.kind=question_answering"], "f1", 100.0),
    "bert tagging": ("bert", tags, ["task.kind=tagging"], "f1", 1.0),
    "gpt classification": ("gpt", classes, ["task.kind=classification"], "accuracy", 1.0),
    "gpt similarity": (
        "gpt",
        alike,
        ["task.kind=classification", "task.pair=pair", "task.both_orders=true"],
        "accuracy",
        1.0,
    ),
    "gpt multiple_choice": ("gpt", choices, ["task.kind=multiple_choice"], "accuracy", 1.0),
    "gpt sft": ("gpt", responses, ["task.kind=sft"], "perplexity", 1.2),
    "bert classification, packed": ("bert", classes, ["task.kind=classification", "data.pack=true"], "accuracy", 1.0),
    "gpt sft, packed": ("gpt", responses, ["task.kind=sft", "data.pack=true"], "perplexity", 1.2),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Model folders of a tiny BERT and a tiny GPT-1."""
    folder = tmp_path_factory.mktemp("bases")
    tokenizers = {"bert": train_wordpiece([TEXT] * 9, 90), "gpt": train_bpe([TEXT] * 9, 90)}
    presets = {"bert": bertgpt.presets.bert_tiny, "gpt": bertgpt.presets.gpt1}
    for family, name in (("bert", "BertForPreTraining"), ("gpt", "OpenAIGPTLMHeadModel")):
        size = bertgpt.tokenizers.vocabulary_size(tokenizers[family])
        config = presets[family](**SIZES, mlp_size=128, vocab_size=size, initializer_range=0.2)
        model = getattr(bertgpt, name)(config)
        params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 4), np.int32))["params"]
        bertgpt.save_pretrained(folder / family, model, params, tokenizers[family])
    return folder


def files(base, data, out):
    return [f"model.init_from={base}", f"data.train={data}", f"data.eval={data}", f"out={out}"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=CASES)
def tuned(request, bases, tmp_path_factory):
    """(name, folder of the finished run, its rows' file)."""
    family, rows, overrides, *_ = CASES[request.param]
    folder = tmp_path_factory.mktemp("tuned")
    data = write(folder / "rows.jsonl", rows())
    arguments = files(bases / family, data, folder / "run")
    (folder / "run.yaml").write_text("seed: 0\n")
    assert main(["finetune", str(folder / "run.yaml"), *OPTIONS, *overrides, *arguments]) == 0
    return request.param, folder / "run", data


def test_a_task_is_learnt_scored_and_predicted(tuned, capsys, tmp_path):
    name, folder, data = tuned
    _, rows, _, figure, reached = CASES[name]
    scored = [row for row in read_metrics(folder) if row["split"] == "eval"]
    assert [row["step"] for row in scored] == [0, 25, 50]
    better = min if figure == "perplexity" else max
    best = better(row[figure] for row in scored)
    assert best <= reached if figure == "perplexity" else best >= reached
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert figure in printed
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written[figure] == pytest.approx(best, abs=1e-4)  # of the best checkpoint, and not the last
    assert (tmp_path / "confusion.png").exists() == ("classification" in name or "similar" in name or "pairs" in name)
    perfect = {"f1": 1.0, "precision": 1.0, "recall": 1.0, "support": 8}
    by_type = {"BEAST": perfect, "PLANT": perfect} if "tagging" in name else None
    assert written.get("by_type") == by_type
    assert printed.count("1.0000 │       8 │") == (2 if by_type else 0)
    assert main(["predict", str(folder), "--file", str(data)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(rows())
    for line, row in zip(lines, rows(), strict=True):
        check_prediction(name, line, row, exact=reached >= 1 or figure == "perplexity")


def test_python_reads_a_tuned_run_as_the_commands_do(tuned):
    _, folder, _ = tuned
    run = load_run(folder)
    model, params = bertgpt.load_pretrained(folder)
    assert (type(model), model.config) == (type(run.model), run.model.config)
    jax.tree.map(np.testing.assert_array_equal, params, run.params)
    assert bertgpt.load_tokenizer(folder).to_str() == run.tokenizer.to_str()


@pytest.mark.parametrize("name", CASES)
def test_every_tasks_train_step_lowers_for_tpu_and_cuda_from_here(name, bases, tmp_path):
    family, rows, overrides, *_ = CASES[name]
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = files(bases / family, write(tmp_path / "rows.jsonl", rows()), tmp_path / "run")
    plan = make_plan(configs.load(str(tmp_path / "run.yaml"), [*OPTIONS, *overrides, *arguments]))
    step = functools.partial(train_step, objective=plan.objective, optimizer=make_optimizer(plan.config.optimizer, 9))
    exported = jax.export.export(jax.jit(step), platforms=["tpu", "cuda"])(plan.state, plan.batch)
    assert exported.platforms == ("tpu", "cuda")


def test_a_batch_of_an_evaluation_is_one_transfer(bases, tmp_path, monkeypatch):
    fetched, fetch = [], parallel.Jit.fetch
    monkeypatch.setattr(parallel.Jit, "fetch", lambda *trees: (fetched.append(len(trees)), fetch(*trees))[1])
    data = write(tmp_path / "rows.jsonl", classes() * 2)
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = ["task.kind=classification", "train.steps=2", *files(bases / "bert", data, tmp_path / "run")]
    assert main(["finetune", str(tmp_path / "run.yaml"), *OPTIONS[:5], "parallel.strategy=jit", *arguments]) == 0
    assert len(fetched) == 5  # 16 rows in batches of 8, before and after training, and the figures of both steps


def check_prediction(name, line, row, exact):
    if name == "bert multi_label":
        assert sorted(line["labels"]) == sorted(row["label"])
    elif name == "bert regression":
        assert line["score"] == pytest.approx(row["label"], abs=0.4)
    elif "question" in name:
        (answer,) = row["answers"]["text"]
        assert line["answer"] == answer == row["context"][line["start"] : line["end"]]
    elif "tagging" in name:
        assert line["tags"] == row["tags"]
        beast, plant = ([entity["label"], entity["text"]] for entity in line["entities"])
        assert (beast, plant) == (["BEAST", row["words"][1]], ["PLANT", row["words"][3]])
    elif "sft" in name:
        assert line["response"] == row["response"]
    elif "choice" in name:
        assert (line["label"], line["choice"]) == (row["label"], row["choices"][row["label"]])
    else:
        assert line["label"] == str(row["label"])
        assert line["text"] == row["text"]


@pytest.mark.parametrize("tuned", ["bert tagging", "gpt classification", "gpt sft"], indirect=True)
def test_an_exported_run_predicts_the_same_from_its_folder(tuned, capsys, tmp_path):
    _, folder, data = tuned
    assert main(["export", str(folder), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    texts = []
    for source in (folder, tmp_path / "model"):
        assert main(["predict", str(source), "--file", str(data)]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("tuned", ["bert pairs"], indirect=True)
def test_python_predicts_as_the_command_line_does(tuned, capsys):
    _, folder, _ = tuned
    model, params, tokenizer, _ = load_run(folder)
    settings = bertgpt.TaskSettings(pair="pair")
    (found,) = bertgpt.predict(model, params, tokenizer, [{"text": "ant", "pair": "ant"}], settings, length=24)
    assert main(["predict", str(folder), "--text", "ant", "--pair", "ant"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["label"], line["probability"]) == (found["label"], pytest.approx(found["probability"], abs=1e-6))


@pytest.mark.parametrize("tuned", ["bert pairs"], indirect=True)
def test_rows_are_found_whatever_their_file_is_called(tuned, tmp_path, monkeypatch):
    _, folder, data = tuned
    name = "~run #2 = [a], ${x}.jsonl"
    shutil.copy(data, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["evaluate", str(folder), f"--data=~/{name}", "--out=~/scores"]) == 0
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["data"] == f"{tmp_path}/{name}"
    assert main(["evaluate", str(folder), f"data.eval={tmp_path}/{name}", f"--out={tmp_path}/again"]) == 0
    assert main(["predict", str(folder), f"--file=~/{name}"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(folder), "--file", name]) == 0


def settings(bases, data, out, *overrides):
    arguments = files(bases / "bert", data, out)
    (data.parent / "run.yaml").write_text("seed: 0\n")
    return configs.load(str(data.parent / "run.yaml"), [*OPTIONS, "task.kind=classification", *arguments, *overrides])


def test_a_run_goes_on_where_it_stopped_and_ends_the_same(bases, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", classes())
    constant = ["optimizer.schedule=constant", "train.eval_every=5", "model.hidden_dropout=0.1"]
    for out, steps in (("whole", 10), ("parts", 5), ("parts", 10)):
        finetuning.finetune(settings(bases, data, tmp_path / out, *constant, f"train.steps={steps}"))
    output = capsys.readouterr()
    assert "resuming from step 5" in output.out
    shared = "warning: 8 of 8 rows of data.eval are also in data.train (same text), so the scores say little about new"
    assert output.err.count(shared) == 3
    assert output.err.count("the warm-up takes 5 updates, but the run has only 5:") == 1  # and not of the runs of 10
    assert "predicted tokens" not in output.err  # classes have none
    whole, parts = (load_run(tmp_path / out, 10).params for out in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    finetuning.finetune(settings(bases, data, tmp_path / "parts", *constant, "train.steps=10"))
    assert "finished" in capsys.readouterr().out
    write(data, classes()[::-1])
    with pytest.raises(bertgpt.InputError, match="the data changed since checkpoint 10; start a new run"):
        finetuning.finetune(settings(bases, data, tmp_path / "parts", *constant, "train.steps=12"))


@pytest.mark.parametrize("pack", [False, True])
def test_training_is_packed_and_evaluation_is_not(bases, tmp_path, pack):
    data = write(tmp_path / "rows.jsonl", classes())
    config = settings(bases, data, tmp_path / "run", f"data.pack={str(pack).lower()}", "seed=5")
    job = finetuning.make_job(config, finetuning.find_initial_model(config), task_rows.read_splits(config))
    batch, held_out = (source.batch(np.arange(3)) for source in (job.train_source, job.deciding.source))
    assert ("pack_ids" in batch) == pack
    assert "pack_ids" not in held_out
    assert (job.deciding.examples, len(job.deciding.source)) == (8, 8)
    assert len(job.train_source) == (3 if pack else 8)  # 8 texts of 3 pieces, 3 at most in a row
    if pack:
        assert job.train_source.seed == 5
        assert (job.train_source.limit, batch["labels"].shape) == (3, (3, 3))


def test_epochs_decide_the_steps_and_patience_ends_early(bases, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", classes())
    still = ["optimizer.learning_rate=0", "train.eval_every=1", "train.patience=2", "train.epochs=8.5"]
    finetuning.finetune(settings(bases, data, tmp_path / "run", *still))
    assert "9 steps of 8 x 24" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(tmp_path / "run") if row["split"] == "eval"] == [0, 1, 2, 3]
    finetuning.finetune(settings(bases, data, tmp_path / "run", *still))  # and it stays ended
    assert "step 3: no better accuracy in 2 evaluations; stopped early" in capsys.readouterr().out


ASKED = {  # task settings; two rows whose inputs are equal, of the nth
    "classification": ([], lambda n: ({"text": f"ant {n}", "label": "a"}, {"text": f" ant\t{n} ", "label": "b"})),
    "pairs": (
        ["task.kind=classification", "task.pair=pair"],
        lambda n: tuple({"text": "ant", "pair": f"fir {n}", "label": label} for label in "ab"),
    ),
    "multi_label": (["task.kind=multi_label"], lambda n: tuple({"text": f"a{n}", "label": x} for x in ([], ["b"]))),
    "regression": (["task.kind=regression"], lambda n: tuple({"text": f"a{n}", "label": x} for x in (0.5, 1))),
    "multiple_choice": (
        ["task.kind=multiple_choice"],
        lambda n: tuple({"text": "who", "choices": ["ant", f"fir {n}"], "label": label} for label in (0, 1)),
    ),
    "multiple_choice of columns": (
        ["task.kind=multiple_choice", "task.choices=[one, two]"],
        lambda n: tuple({"text": "who", "one": "ant", "two": f"fir {n}", "label": label} for label in (0, 1)),
    ),
    "question_answering": (
        ["task.kind=question_answering"],
        lambda n: tuple({"question": asked, "context": f"ant {n}", "answers": "ant"} for asked in ("who", "where")),
    ),
    "tagging": (
        ["task.kind=tagging"],
        lambda n: ({"words": ["ant", f"fir{n}"], "tags": ["O", "B-a"]}, {"words": f"ant fir{n}", "tags": "O O"}),
    ),
    "sft": (
        ["task.kind=sft"],
        lambda n: (
            {"prompt": f"near {n}", "response": "ant"},
            {"messages": [{"role": r, "content": c} for r, c in (("user", f"near {n}"), ("assistant", "fir"))]},
        ),
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_rows_with_equal_inputs_are_on_one_side(name, bases, tmp_path):
    overrides, asked = ASKED[name]
    rows = [{"id": f"{n} {index}", **row} for n in range(60) for index, row in enumerate(asked(n))]
    config = settings(
        bases, write(tmp_path / "rows.jsonl", rows), tmp_path / "run", "data.eval_fraction=0.3", *overrides
    )
    config.data.eval = None
    splits = task_rows.read_splits(config)
    sides = {split: [row.values["id"].split() for row in found] for split, found in splits.items()}
    numbers = {split: {n for n, _ in found} for split, found in sides.items()}
    assert not numbers["train"] & numbers["eval"]
    assert sum(map(len, sides.values())) == 120
    assert 6 <= len(numbers["eval"]) <= 30  # of 18 expected, 3.5 standard deviations
    write(tmp_path / "rows.jsonl", [{**row, "id": f"{row['id']} again"} for row in rows[::-1]])
    again = task_rows.read_splits(config)
    assert {row.values["id"].rpartition(" ")[0] for row in again["eval"]} == {" ".join(row) for row in sides["eval"]}
    repeated = {"train": splits["train"], "eval": [*splits["eval"], *splits["train"][:3]]}
    assert task_rows.count_shared(config.task, repeated) == {"eval": 3}
    assert task_rows.count_shared(config.task, splits) == {}


def test_rows_that_are_held_at_once_are_bounded(bases, tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl.gz"
    data.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in classes()).encode()))
    config = settings(bases, data, tmp_path / "run")
    assert len(task_rows.read_splits(config)["eval"]) == 8
    monkeypatch.setattr(readers, "unpacked_limit", lambda packed: packed)
    with pytest.raises(bertgpt.InputError, match=r"^data.train: [^ ]*rows\.jsonl\.gz line 1: up to here rows take"):
        task_rows.read_splits(config)
    with pytest.raises(bertgpt.InputError, match=r"rows\.jsonl\.gz line 1: up to here rows take"):
        evaluating.held_out_rows(evaluating.Tuned(None, config, "classification", tmp_path))


def test_the_rule_that_holds_rows_out_keeps_its_name(bases, tmp_path):
    """These rows are held out under the name HELD_OUT: change both or neither, so that no run resumes on others."""
    data = write(tmp_path / "rows.jsonl", [{"text": f"ant {n}", "label": "a"} for n in range(40)])
    config = settings(bases, data, tmp_path / "run", "data.eval_fraction=0.1")
    config.data.eval = None
    held_out = [row.values["text"] for row in task_rows.read_splits(config)["eval"]]
    assert (task_rows.HELD_OUT, held_out) == ("inputs-1", ["ant 10", "ant 24", "ant 30", "ant 35"])


@pytest.mark.parametrize(
    ("count", "overrides", "message"),
    [
        (
            3,
            ["data.eval_fraction=0.001"],
            "data.eval_fraction=0.001 of data.train leaves no rows for data.eval .*; raise it, or",
        ),
        (3, ["data.eval_fraction=0.999"], "leaves no rows for data.train .* lower it, or set data.eval"),
        (0, [], r"data.train: no rows in .*rows.jsonl$"),
        (3, ["task.text=sentence"], r"rows.jsonl line 1: column 'sentence' is missing \(columns: text, label\)"),
        (3, ["task.kind=sft"], r"column 'prompt' is missing .*set task.prompt"),
    ],
)
def test_rows_that_cannot_be_divided_are_told(count, overrides, message, bases, tmp_path):
    config = settings(bases, write(tmp_path / "rows.jsonl", classes()[:count]), tmp_path / "run", *overrides)
    config.data.eval = None
    with pytest.raises(bertgpt.InputError, match=message):
        task_rows.read_splits(config)


def test_a_run_that_held_out_other_rows_is_neither_resumed_nor_scored(bases, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "rows.jsonl", classes() * 2)
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = [*OPTIONS, "task.kind=classification", "data.eval_fraction=0.3", f"model.init_from={bases / 'bert'}"]
    command = ["finetune", str(tmp_path / "run.yaml"), *arguments, f"data.train={data}", f"out={tmp_path / 'run'}"]
    assert main([*command, "train.steps=1"]) == 0
    monkeypatch.setattr(task_rows, "HELD_OUT", "inputs-2")
    capsys.readouterr()
    assert main([*command, "train.steps=2"]) == 2
    assert "another version split data.train by another rule" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "its held-out rows cannot be reproduced; give other labelled rows: --data" in capsys.readouterr().err


def test_a_csv_file_is_read(bases, tmp_path):
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("words", "kind"), *((row["text"], row["label"]) for row in classes())])
    config = settings(bases, tmp_path / "rows.csv", tmp_path / "run", "task.text=words", "task.label=kind")
    assert [row.values["kind"] for row in task_rows.read_splits(config)["train"]][3:5] == ["animal", "plant"]


@pytest.mark.parametrize(
    ("family", "rows", "overrides", "message"),
    [
        ("bert", classes, [], "task.kind is missing; choose one of classification"),
        ("bert", classes, ["task.kind=classify"], "task.kind is 'classify'; choose one of classification"),
        ("gpt", tags, ["task.kind=tagging"], "task.kind tagging needs a BERT; start from one"),
        ("bert", responses, ["task.kind=sft"], "task.kind sft needs a GPT-1; start from one"),
        ("bert", classes, ["task.kind=classification", "task.text=sentence"], "column 'sentence' is missing"),
        (
            "bert",
            classes,
            ["task.kind=classification", "model.init_from=null"],
            "model.init_from is missing",
        ),
        (
            "bert",
            classes,
            ["task.kind=classification", "data.train=null"],
            "data.train is missing",
        ),
        ("bert", classes, ["task.kind=classification", "data.sequence_length=99"], "24; lower it; the weights have"),
        ("bert", classes, ["task.kind=classification", "data.eval=no.csv"], "data.eval: no.csv: no such file"),
        ("bert", questions, ["task.kind=question_answering", "task.answers=id"], "column 'id' is missing"),
        ("bert", list, ["task.kind=classification"], "data.train: no rows in"),
        ("gpt", long_responses, ["task.kind=sft"], "data.train: every row is too long; raise data.sequence_length"),
        (
            "bert",
            choices,
            ["task.kind=multiple_choice", "data.pack=true"],
            "data.pack=true supports tagging, classification, multi_label, regression with BERT, not task.kind "
            "multiple_choice; set data.pack=false",
        ),
        ("bert", questions, ["task.kind=question_answering", "data.pack=true"], "set data.pack=false"),
        (
            "gpt",
            alike,
            ["task.kind=classification", "task.pair=pair", "task.both_orders=true", "data.pack=true"],
            "data.pack=true supports sft with GPT-1, not task.kind classification; set data.pack=false",
        ),
        ("gpt", choices, ["task.kind=multiple_choice", "data.pack=true"], "set data.pack=false"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(family, rows, overrides, message, bases, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", rows())
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = files(bases / family, data, tmp_path / "run")
    capsys.readouterr()
    assert main(["finetune", str(tmp_path / "run.yaml"), *OPTIONS, *arguments, *overrides]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_label_of_the_evaluation_alone_is_named(bases, tmp_path):
    data, other = write(tmp_path / "rows.jsonl", classes()), tmp_path / "other.jsonl"
    write(other, [{"text": "ant", "label": "stone"}])
    config = settings(bases, data, tmp_path / "run", f"data.eval={other}")
    with pytest.raises(bertgpt.InputError, match=r"other.jsonl line 1: label 'stone' is not among .*\(animal, plant\)"):
        finetuning.finetune(config)


def test_a_diverging_run_says_so_and_keeps_what_it_had(bases, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", classes())
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = files(bases / "bert", data, tmp_path / "run")
    wild = ["task.kind=classification", "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0"]
    capsys.readouterr()
    assert main(["finetune", str(tmp_path / "run.yaml"), *OPTIONS, *arguments, *wild]) == 1
    assert "lower optimizer.learning_rate" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("tuned", ["bert classification"], indirect=True)
def test_classes_without_names_are_matched_by_number_and_this_is_said(tuned, tmp_path, capsys):
    assert main(["export", str(tuned[1]), str(tmp_path / "model")]) == 0
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    assert values["id2label"] == {"0": "animal", "1": "plant"}
    file.write_text(json.dumps(values | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": None}))
    data = write(tmp_path / "rows.jsonl", [row | {"label": int(row["label"] == "plant")} for row in classes()])
    said = f"{tmp_path}/model: its classes are LABEL_0 to LABEL_1; the labels of the rows are matched by number"
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "model"), f"--data={data}", f"--out={tmp_path}"]) == 0
    assert said in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] == 1
    (tmp_path / "run.yaml").write_text("task:\n  kind: classification\n")
    arguments = [*OPTIONS, *files(tmp_path / "model", data, tmp_path / "run"), "train.steps=1", "train.log_every=1"]
    assert main(["finetune", str(tmp_path / "run.yaml"), *arguments]) == 0
    assert said in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    first = next(row for row in read_metrics(tmp_path / "run") if row["split"] == "eval")
    assert (first["step"], first["accuracy"]) == (0, 1)


def input_of(text: str) -> io.TextIOWrapper:
    """Standard input with this text."""
    return io.TextIOWrapper(io.BytesIO(text.encode()))


@pytest.mark.parametrize("tuned", ["bert classification"], indirect=True)
def test_lines_of_standard_input_are_texts_or_objects(tuned, capsys, monkeypatch):
    _, folder, _ = tuned
    lines = '\ufeffant\r\n\r\n  {"id": 7, "text": "fir"}\r\n{"text"\n'
    monkeypatch.setattr("sys.stdin", input_of(lines.rpartition('{"text"')[0]))
    assert main(["predict", str(folder)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row.get("id"), row["text"], row["label"]) for row in found] == [
        (None, "ant", "animal"),
        (7, "fir", "plant"),
    ]
    monkeypatch.setattr("sys.stdin", input_of(lines))
    assert main(["predict", str(folder)]) == 2
    assert "standard input line 4: not JSON" in capsys.readouterr().err
    for arguments, message in (
        (["--text", "ant", "--file", "x"], "give --text or --file, not both"),
        (["--text", "ant", "--choice", "fir"], "--choice is not for classification; remove it"),
        (
            ["--text", "ant", "data.sequence_length=99"],
            "the length is 99 tokens; it must be from 8 to",
        ),
        (["--text", "ant", "--pair", "ant"], "--pair: this run was fine-tuned on single texts (task.pair is null)"),
        (["--pair", "ant"], "--pair, --question and --choice need --text"),
        (["--text", " "], "--text: column 'text' is an empty text"),
        (["task.kind=tagging"], "its model is for classification, not for task.kind tagging"),
    ):
        assert main(["predict", str(folder), *arguments]) == 2
        assert message in capsys.readouterr().err


ONE_ROW = {
    "bert question_answering": (["--text", "saw fir near ant saw", "--question", "who"], ("answer", "ant")),
    "bert multiple_choice": (["--text", "who", "--choice", "fir", "--choice", "ant"], ("choice", "ant")),
    "bert tagging": (["--text", "saw  ant near fir"], ("tags", ["O", "B-BEAST", "O", "B-PLANT"])),
    "gpt sft": (["--text", "near ant"], ("response", "saw fir")),
}


@pytest.mark.parametrize("tuned", ONE_ROW, indirect=True)
def test_one_question_and_one_choice_from_the_command_line(tuned, capsys):
    name, folder, _ = tuned
    given, (key, expected) = ONE_ROW[name]
    assert main(["predict", str(folder), *given]) == 0
    assert json.loads(capsys.readouterr().out)[key] == expected


@pytest.mark.parametrize("tuned", ["bert classification", "gpt classification"], indirect=True)
def test_pretraining_goes_on_from_a_fine_tuned_run(tuned, tmp_path):
    name, folder, _ = tuned
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    start = find_initial_model(configs.load(str(tmp_path / "run.yaml"), [f"model.init_from={folder}"]))
    encoder, parts = {"bert": ("bert", 3), "gpt": ("transformer", 1)}[name.split()[0]]
    assert len(start.params) == parts
    assert (start.config.labels, start.config.num_labels) == ((), 2)
    jax.tree.map(np.testing.assert_array_equal, start.params[encoder], load_run(folder).params[encoder])


def test_a_resumed_run_may_name_the_size_that_it_began_with(bases, tmp_path):
    data = write(tmp_path / "rows.jsonl", classes())
    size = bertgpt.tokenizers.vocabulary_size(bertgpt.load_tokenizer(bases / "gpt"))
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    arguments = [*OPTIONS, "task.kind=classification", f"model.vocab_size={size}"]
    arguments += files(bases / "gpt", data, tmp_path / "run")
    for steps in (1, 2):
        assert main(["finetune", str(tmp_path / "run.yaml"), *arguments, f"train.steps={steps}"]) == 0
    assert load_run(tmp_path / "run").model.config.vocab_size == size + 3


@pytest.mark.parametrize(
    ("verb", "override", "message"),
    [
        ("finetune", "train.epochs=0", "train.epochs is 0.0; it must be above 0"),
        ("finetune", "train.epochs=.inf", "train.epochs is '.inf'; it must be a finite number"),
        ("finetune", "task.choices=[5]", "task.choices is [5]; it must be a column or a list of columns"),
        ("pretrain", "train.epochs=2", "train.epochs is for fine-tuning; add train.epochs=null"),
        ("pretrain", "task.kind=sft", "task.kind sft is for fine-tuning; use finetune"),
    ],
)
def test_settings_of_the_other_verb_or_impossible_ones_are_refused(verb, override, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    assert main([verb, str(tmp_path / "run.yaml"), override]) == 2
    assert message in capsys.readouterr().err


def test_python_is_told_how_responses_are_written(bases):
    model, params = bertgpt.load_pretrained(bases / "gpt")
    with pytest.raises(bertgpt.InputError, match="use bertgpt.inference.predict.respond"):
        bertgpt.predict(model, params, bertgpt.load_tokenizer(bases / "gpt"), [{"prompt": "ant"}])
