"""The command line: exit codes, one line for every mistake, and a whole small run of each model."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
import yaml
from quick import QUICK

import bertgpt
from bertgpt.tokenizers import train_wordpiece
from train import loader, loop
from train.__main__ import explain, main
from train.folders import token_store

RUN = {
    "model": {
        "preset": "bert_tiny",
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_size": 32,
        "max_positions": 32,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "tokenizer": {"vocab_size": 200},
    "data": {"eval_fraction": 0.1, "sequence_length": 32, "workers": 1},
    "optimizer": {"learning_rate": 0.003, "warmup_steps": 2},
    "train": {"steps": 4, "batch_size": 8, "log_every": 2, "eval_every": 2, "eval_examples": 20},
    "checkpoint": {"every": 2, "keep": 1},
    "parallel": {"strategy": "jit"},
}


def write_config(folder, out, corpus_file, **changes):
    """Writes a small BERT run's file, whose run and store will be in the folder; `changes` of its sections, by name."""
    values = {**RUN, "out": str(folder / out)}
    values["data"] = {**RUN["data"], "train": str(corpus_file), "store": str(folder / f"{out}_store")}
    for section, keys in changes.items():
        values[section] = {**values[section], **keys}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config_file(corpus_file, tmp_path_factory):
    """A small BERT run's file; `out` and everything else by overrides."""
    return write_config(tmp_path_factory.mktemp("run"), "bert", corpus_file)


@pytest.fixture(scope="module")
def bert_run(config_file):
    """A finished BERT run's folder."""
    assert main(["pretrain", str(config_file)]) == 0
    return config_file.parent / "bert"


@pytest.fixture(scope="module")
def gpt_run(config_file):
    """A finished GPT-1 run's folder."""
    folder = config_file.parent / "gpt"
    overrides = ["model.preset=gpt1", "model.num_layers=2", "model.mlp_size=64"]
    overrides += [f"out={folder}", f"data.store={folder}_store"]
    assert main(["pretrain", str(config_file), *overrides]) == 0
    return folder


def fails(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_bert_run_leaves_what_is_promised(bert_run):
    assert {"config.yaml", "tokenizer.json", "metrics.jsonl", "checkpoints", "curves.png"} <= {
        path.name for path in bert_run.iterdir()
    }
    rows = [json.loads(line) for line in (bert_run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(2, "train"), (2, "eval"), (4, "train"), (4, "eval")]
    assert {"loss", "mlm_loss", "nsp_loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(rows[0])
    assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_accuracy", "nsp_balanced_accuracy"} <= set(rows[1])
    assert rows[1]["nsp_length_baseline"] == rows[3]["nsp_length_baseline"]  # of the same held-out pairs
    assert 0 < rows[1]["nsp_length_baseline"] < 1
    assert not any("recall" in name for name in rows[1])
    for row in rows:
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])


def test_compiled_programs_are_kept_where_nothing_else_is_said(config_file, tmp_path):
    """Two starts of one command: the second compiles nothing that took a second the first time."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": QUICK, "JAX_LOG_COMPILES": "1"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-m", "train", "pretrain", str(config_file), "train.steps=1", "train.eval_every=9"]
    texts = []
    for out in ("first", "second"):
        done = subprocess.run([*command, f"out={tmp_path / out}"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append(done.stderr)
    (folder,) = (tmp_path / "bertgpt").glob("compiled-*")
    assert any(folder.iterdir())
    first, second = ("Persistent compilation cache hit for 'jit_train_step'" in text for text in texts)
    assert (first, second) == (False, True)


def test_a_stalled_loader_is_told_and_chosen_steps_are_traced(config_file, tmp_path, monkeypatch, capsys):
    batches = loader.batches

    def slow(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            time.sleep(1 if number == 2 else 0)
            yield batch

    monkeypatch.setattr(loader, "batches", slow)
    options = ["train.stall_seconds=0.5", "train.profile=2:3", "train.eval_every=4", f"out={tmp_path / 'run'}"]
    assert main(["pretrain", str(config_file), *options]) == 0
    output = capsys.readouterr()
    line = next(line for line in output.err.splitlines() if "stalled: the loader, for the batch of step 3, has" in line)
    stacks = tmp_path / "run" / "stalled_0.txt"
    assert re.search(rf" s, in test_commands\.py:\d+ slow < .*; stacks of all threads: {stacks}", line)
    assert " in slow\n" in stacks.read_text()
    assert f"profile of steps 2:3: {tmp_path / 'run' / 'profile'}" in output.out
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_gpt_run_tells_perplexity_and_bits_per_byte_and_writes_a_line(gpt_run, capsys):
    row = [json.loads(line) for line in (gpt_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["perplexity"] == pytest.approx(2.718281828 ** row["lm_loss"])
    assert row["bits_per_byte"] > 0
    assert main(["report", str(gpt_run)]) == 0
    assert "bits per byte" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_packed_pretraining_is_scored_on_the_rows_of_an_unpacked_run(family, request, config_file, tmp_path):
    plain = request.getfixturevalue(f"{family}_run")
    overrides = ["model.preset=gpt1", "model.num_layers=2", "model.mlp_size=64"] if family == "gpt" else []
    overrides += [f"out={tmp_path}", f"data.store={plain}_store", "data.pack=true", "train.steps=2"]
    assert main(["pretrain", str(config_file), *overrides]) == 0
    packed, unpacked = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][:2]
        for folder in (tmp_path, plain)
    )
    for key in ("examples", "unigram_cross_entropy"):
        assert packed[1][key] == unpacked[1][key]
    assert packed[0]["loss"] != unpacked[0]["loss"]


def test_a_finished_run_says_so(bert_run, config_file, capsys):
    before = (bert_run / "metrics.jsonl").read_text()
    assert main(["pretrain", str(config_file)]) == 0
    assert "finished" in capsys.readouterr().out
    assert (bert_run / "metrics.jsonl").read_text() == before


def test_trying_a_bert(bert_run, capsys):
    assert main(["fill-mask", str(bert_run), "a b [MASK] c"]) == 0
    assert capsys.readouterr().out.count("[MASK]:") == 1
    assert main(["predict", str(bert_run), "--text", "a b", "--pair", "c d"]) == 0
    assert "follows the first: 0." in capsys.readouterr().out


def test_trying_a_gpt(gpt_run, capsys):
    arguments = ["generate", str(gpt_run), "--prompt", "abc", "--max-new-tokens", "4"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("a")
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


def test_sampled_text_hangs_on_the_seed(gpt_run, capsys):
    def run(*options):
        assert main(["generate", str(gpt_run), "--prompt", "abc", "--max-new-tokens", "8", *options]) == 0
        return capsys.readouterr().out

    sampled = ["--temperature", "2", "--top-k", "40", "--top-p", "0.95"]
    first, again, other = (run(*sampled, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert len(first.splitlines()) == 1


def test_samples_are_printed_under_their_numbers(gpt_run, capsys):
    arguments = ["generate", str(gpt_run), "--prompt", "abc", "--max-new-tokens", "5", "--temperature", "2"]
    assert main([*arguments, "--samples", "3"]) == 0
    blocks = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [f"sample {number} of 3" for number in (1, 2, 3)]
    texts = [block.splitlines()[1] for block in blocks]
    assert all(text.startswith("a") for text in texts)
    assert len(set(texts)) == 3


def test_log_probabilities_are_printed_below_the_text(gpt_run, capsys):
    arguments = ["generate", str(gpt_run), "--prompt", "abc", "--max-new-tokens", "4"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--log-probs"]) == 0
    shown, *lines = capsys.readouterr().out.splitlines()
    assert shown == text.rstrip("\n")
    *tokens, total = [line.split(maxsplit=1) for line in lines]
    values = [float(value) for value, _ in tokens]
    assert len(values) == 4
    assert max(values) < 0
    assert abs(sum(values) - float(total[0])) < 0.01
    assert total[1] == "sum of 4 tokens"
    assert "".join(piece for _, piece in tokens).replace("</w>", " ").strip() in shown


def test_a_text_ends_at_a_string_or_token_and_repeats_less(gpt_run, capsys):
    def run(*options):
        assert main(["generate", str(gpt_run), "--prompt", "abc", "--max-new-tokens", "9", *options]) == 0
        return capsys.readouterr().out.rstrip("\n")

    whole = run()
    tokens = [line.split()[1] for line in run("--log-probs").splitlines()[1:-1]]
    first = tokens[0].replace("</w>", "")
    stopped = run("--stop", "never", "--stop", first)
    assert whole.startswith(stopped)
    assert len(stopped) < len(whole)
    assert run("--end-token", tokens[0]) == stopped
    longer = run("--end-token", tokens[0], "--min-new-tokens", "3")
    assert longer != stopped
    assert run("--repetition-penalty", "9") != whole


def test_a_prompt_may_be_cut_on_the_left(gpt_run, capsys):
    arguments = ["generate", gpt_run, "--prompt", "abc " * 40, "--max-new-tokens", "4"]
    assert "or set cut_left" in fails(capsys, *arguments)
    assert main([*map(str, arguments), "--cut-left"]) == 0
    text = capsys.readouterr().out
    assert main([*map(str, arguments), "--cut-left", "--log-probs"]) == 0
    assert capsys.readouterr().out.startswith(text)


def test_vectors_are_printed_one_a_line(bert_run, capsys, monkeypatch):
    assert main(["embed", str(bert_run), "a b", "c"]) == 0
    given = capsys.readouterr().out.splitlines()
    for content, options in (
        (b"a b\nc\n", []),
        (b'\xef\xbb\xbfa b\r\n\r\n  {"text": "c"}\r\n', []),
        (b'{"other": "a b"}\nc', ["--text-key", "other"]),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(["embed", str(bert_run), *options]) == 0
        assert capsys.readouterr().out.splitlines() == given
    rows = [json.loads(line) for line in given]
    assert [(row["text"], len(row["embedding"])) for row in rows] == [("a b", 16), ("c", 16)]
    assert main(["embed", str(bert_run), "a b", "--pooling", "cls"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding"] != rows[0]["embedding"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\ncaf\xe9\n", "standard input line 2: not UTF-8 (byte 0xe9)"),
        (b'{"text": "a"}\n{"text": \n', "standard input line 2: not JSON: Expecting value; an object must end on its "),
        (b'{\n "text": "a"\n}\n', "standard input line 1: not JSON"),
        (b'{"body": "a"}\n', "standard input line 1: no text under 'text' (found keys body); set --text-key"),
        (
            b'a\n[{"text": "a"}]\n',
            "standard input line 2: a JSON list; give one object a line, or a .json file with --file",
        ),
        (b'{"text": 3}\n', "standard input line 1: no text under 'text' (found keys text)"),
    ],
)
def test_a_line_of_standard_input_that_is_no_text_is_named(bert_run, capsys, monkeypatch, content, expected):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert expected in fails(capsys, "embed", bert_run)


def test_a_text_that_is_the_name_of_a_file_is_told(bert_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a b")
    assert main(["embed", str(bert_run), "ä" * 150]) == 0  # too long for the name of a file
    assert capsys.readouterr().err == ""
    assert main(["embed", str(bert_run), "a.txt"]) == 0
    assert capsys.readouterr().err == (
        "warning: 'a.txt' is taken as a text, and a file has this name; to read the file, give --file\n"
    )


def test_a_text_may_begin_with_a_brace(bert_run, capsys, monkeypatch):
    texts = ["{laughs} a b", "{ c", "{}x"[1:], "[c]"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    assert main(["embed", str(bert_run)]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "--prompt", "a", "--seed", "99999999999"], "--seed must be at least 0 and under"),
        (["generate", "--prompt", "\udcff"], "a text is not UTF-8"),
        (["generate", "--prompt", "a", "--max-new-tokens", "4", "--temperature", "nan"], "temperature nan"),
        (["generate", "--prompt", "a", "--max-new-tokens", "64"], "max_new_tokens is 64"),
        (
            ["generate", "--prompt", "a", "--max-new-tokens", "4", "--repetition-penalty", "inf"],
            "repetition_penalty inf",
        ),
        (["generate", "--prompt", "a", "--min-new-tokens", "2"], "--min-new-tokens needs --end-token"),
        (["generate", "--prompt", "a", "--end-token", "no such"], "--end-token 'no such' is not in the vocabulary"),
        (["generate", "--prompt", "a", "--max-new-tokens", "4", "--stop", ""], "stop string '' must be a text"),
        (["generate", "--prompt", "a", "--stop", "\udcff"], "a text is not UTF-8"),
        (["generate", "--prompt", "a", "--end-token", "\udcff"], "a text is not UTF-8"),
        (["generate", "--prompt", "a", "--samples", "0"], "--samples must be at least 1"),
        (["generate", "--prompt", "a", "--samples", "2"], "--samples above 1 needs a --temperature above 0"),
        (["embed"], "there are no texts"),
        (["embed", "\udcff"], "a text is not UTF-8"),
    ],
)
def test_texts_and_numbers_that_cannot_be_used_are_one_line(gpt_run, capsys, monkeypatch, arguments, expected):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    verb, *options = arguments
    assert expected in fails(capsys, verb, gpt_run, *options)
    assert capsys.readouterr().out == ""


def test_the_wrong_verb_is_told_the_right_one(bert_run, gpt_run, capsys):
    assert "use fill-mask" in fails(capsys, "generate", bert_run, "--prompt", "a")
    assert "use generate" in fails(capsys, "fill-mask", gpt_run, "a [MASK]")
    assert "use generate" in fails(capsys, "predict", gpt_run, "--text", "a", "--pair", "b")


def test_continued_pretraining_takes_weights_and_tokenizer(bert_run, config_file, tmp_path, capsys):
    import numpy as np

    from train.folders.run_folder import load_run

    overrides = [f"model.init_from={bert_run}", f"out={tmp_path}", f"data.store={tmp_path}/store"]
    overrides += ["optimizer.learning_rate=0", "train.steps=1"]  # the file's preset gives way
    assert main(["pretrain", str(config_file), *overrides]) == 0
    old, new = load_run(bert_run), load_run(tmp_path)
    assert new.tokenizer.to_str() == old.tokenizer.to_str()
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), old.params, new.params)))


@pytest.fixture(scope="module")
def exported(bert_run, gpt_run, tmp_path_factory):
    """Both runs as Hugging Face folders."""
    folders = {name: tmp_path_factory.mktemp("exported") / name for name in ("bert", "gpt")}
    for run in (bert_run, gpt_run):
        assert main(["export", str(run), str(folders[run.name])]) == 0
    return folders


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), a, b)))


def test_an_exported_run_is_its_best_checkpoint_with_its_tokenizer(exported, bert_run, gpt_run):
    from train.folders.run_folder import load_run

    for run, name in ((bert_run, "BertForPreTraining"), (gpt_run, "OpenAIGPTLMHeadModel")):
        loaded, found = load_run(run), load_run(exported[run.name])
        assert type(found.model).__name__ == name
        assert same(loaded.params, found.params)
        assert found.tokenizer.to_str() == loaded.tokenizer.to_str()


def test_a_chosen_step_is_exported(config_file, tmp_path, capsys):
    from train.folders.run_folder import load_run

    store = config_file.parent / "bert_store"
    out = ["checkpoint.keep=3", f"out={tmp_path}/run", f"data.store={store}"]
    assert main(["pretrain", str(config_file), *out]) == 0
    for step in (2, 4):
        assert main(["export", f"{tmp_path}/run", f"{tmp_path}/{step}", "--step", str(step)]) == 0
        assert f"of step {step}" in capsys.readouterr().out
    two, four = (load_run(tmp_path / str(step)).params for step in (2, 4))
    assert same(two, bertgpt.load_pretrained(tmp_path / "run", step=2)[1])
    assert same(four, bertgpt.load_pretrained(tmp_path / "run", step=4)[1])
    assert same(two, load_run(tmp_path / "run", 2).params)
    assert not same(two, four)
    assert "no checkpoint 3; there are 2, 4" in fails(capsys, "export", tmp_path / "run", tmp_path / "3", "--step", 3)
    assert "give no step" in fails(capsys, "export", tmp_path / "2", tmp_path / "3", "--step", 2)
    branch = [f"model.init_from={tmp_path}/run", "model.init_step=2", f"out={tmp_path}/branch", f"data.store={store}"]
    assert main(["pretrain", str(config_file), *branch, "optimizer.learning_rate=0", "train.steps=1"]) == 0
    assert same(two, load_run(tmp_path / "branch").params)
    assert "no checkpoint 3; there are" in fails(capsys, "pretrain", config_file, *branch, "model.init_step=3", "out=x")
    kept = (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert "run is a run folder; give another folder" in fails(capsys, "export", tmp_path / "2", tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == kept
    assert not (tmp_path / "3").exists()


def test_python_reads_a_run_as_its_exported_folder(exported, bert_run, gpt_run):
    for run in (bert_run, gpt_run):
        model, params = bertgpt.load_pretrained(run)
        same_model, expected = bertgpt.load_pretrained(exported[run.name])
        assert (type(model), model.config.num_layers) == (type(same_model), same_model.config.num_layers)
        assert same(params, expected)
        assert bertgpt.load_tokenizer(run).to_str() == bertgpt.load_tokenizer(exported[run.name]).to_str()
    with pytest.raises(bertgpt.InputError, match=r"bert: no checkpoint 77; there are "):
        bertgpt.load_pretrained(bert_run, step=77)
    with pytest.raises(bertgpt.InputError, match="a model folder has no checkpoint 2; give no step, or a run folder"):
        bertgpt.load_pretrained(exported["bert"], step=2)


def test_python_gives_a_run_another_head(bert_run):
    with pytest.warns(UserWarning, match="BertForSequenceClassification|lacks classifier") as told:
        _, params = bertgpt.load_pretrained(bert_run, "BertForSequenceClassification", num_labels=3)
    messages = [str(warning.message) for warning in told]
    assert any("BertForSequenceClassification does not use cls." in message for message in messages)
    assert any("lacks classifier.weight, classifier.bias: randomly initialized" in message for message in messages)
    assert params["classifier"]["kernel"].shape == (16, 3)
    with pytest.warns(UserWarning, match="BertModel does not use"):
        encoder = bertgpt.load_pretrained(bert_run, "BertModel")[1]
    assert same(encoder, params["bert"])
    with pytest.raises(
        bertgpt.InputError, match="architecture 'OpenAIGPTModel' is for another kind of model; choose one of BertModel"
    ):
        bertgpt.load_pretrained(bert_run, "OpenAIGPTModel")


def test_a_run_is_exported_as_stablehlo(gpt_run, tmp_path):
    assert main(["export", str(gpt_run), f"{tmp_path}/out", "--format", "stablehlo"]) == 0
    names = {"model.stablehlo", "weights.safetensors", "README.md", "tokenizer.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_a_model_folder_serves_every_verb(exported, capsys):
    assert main(["fill-mask", str(exported["bert"]), "a b [MASK] c"]) == 0
    assert main(["predict", str(exported["bert"]), "--text", "a b", "--pair", "c d"]) == 0
    assert main(["generate", str(exported["gpt"]), "--prompt", "abc", "--max-new-tokens", "2"]) == 0
    assert "follows the first: 0." in capsys.readouterr().out


def change_architecture(folder, architecture):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))


@pytest.mark.parametrize(
    ("name", "architecture", "arguments", "expected"),
    [
        ("bert", "BertForMaskedLM", ["predict", "--text", "a", "--pair", "b"], "BertForMaskedLM has no task head"),
        ("bert", "BertModel", ["fill-mask", "a [MASK]"], "BertModel has no MLM head; use a BertForPreTr"),
        ("gpt", "OpenAIGPTModel", ["generate", "--prompt", "a"], "OpenAIGPTModel cannot generate text"),
    ],
)
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_folder_without_the_verbs_head_is_told(exported, tmp_path, name, architecture, arguments, expected, capsys):
    folder = shutil.copytree(exported[name], tmp_path / "folder")
    change_architecture(folder, architecture)
    capsys.readouterr()
    assert main([arguments[0], str(folder), *arguments[1:]]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_pretraining_goes_on_from_a_model_folder(exported, bert_run, config_file, tmp_path, capsys):
    from train.folders.run_folder import load_run

    overrides = [f"out={tmp_path}/run", f"data.store={tmp_path}/store", "model.preset=null", "train.steps=1"]
    overrides += ["optimizer.learning_rate=0", f"model.init_from={exported['bert']}"]
    assert main(["pretrain", str(config_file), *overrides]) == 0
    old, new = load_run(bert_run), load_run(tmp_path / "run")
    assert new.tokenizer.to_str() == old.tokenizer.to_str()
    assert same(old.params, new.params)
    assert main(["export", f"{tmp_path}/run", f"{tmp_path}/out"]) == 0
    assert same(load_run(tmp_path / "out").params, old.params)


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_classifier_is_left_behind_by_pretraining(gpt_run, tmp_path):
    from train.folders.run_folder import load_for_pretraining, load_run

    run = load_run(gpt_run)
    model = bertgpt.OpenAIGPTForSequenceClassification(run.model.config)
    params = {**run.params, "score": {"kernel": jnp.zeros((16, 2))}}
    bertgpt.save_pretrained(tmp_path, model, params, run.tokenizer)
    start = load_for_pretraining(tmp_path)
    assert type(start.model).__name__ == "OpenAIGPTLMHeadModel"
    assert same(start.params, run.params)


@pytest.mark.filterwarnings("default::UserWarning")
def test_heads_that_a_model_folder_lacks_are_made_for_pretraining(exported, config_file, tmp_path, capsys):
    from train.folders.run_folder import load_run

    folder = tmp_path / "folder"
    model, params = bertgpt.load_pretrained(exported["bert"], "BertModel")
    bertgpt.save_pretrained(folder, model, params, bertgpt.load_tokenizer(exported["bert"]))
    overrides = [f"out={tmp_path}/run", f"data.store={tmp_path}/store", "model.preset=null", "train.steps=1"]
    assert main(["pretrain", str(config_file), *overrides, f"model.init_from={folder}"]) == 0
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if "lacks cls.predictions" in line and "randomly initialized" in line]) == 1
    assert type(load_run(tmp_path / "run").model).__name__ == "BertForPreTraining"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.stepz=3"], "unknown key train.stepz; did you mean train.steps"),
        (["train.steps=many"], "train.steps"),
        (["model.preset=bert_huge"], "'bert_huge' is unknown"),
        (["model.num_heads=3"], "not divisible by model.num_heads 3"),
        (["data.sequence_length=64"], "over model.max_positions 32"),
        (["model.vocab_size=50"], "beyond the vocabulary"),
        (["train.batch_size=7", "train.accumulate=2"], "train.batch_size 7 is not divisible"),
        (["data.train=nowhere.txt"], "nowhere.txt: no such file"),
        (["optimizer.name=sgd"], "choose one of adamw, lamb"),
        (["model.init_from=nowhere", "model.preset=null"], "nowhere: no such folder, no copy in the hub's"),
        (
            ["model.init_from=nowhere", "model.preset=bert_tiny"],
            "model.preset conflicts with model.init_from; add model.preset=null",
        ),
        (["model.init_step=3"], "model.init_step is the step of a run; give the run's folder as model.init_from"),
        (["tokenizer.kind=bpe"], "BERT needs wordpiece"),
        (["model.preset=gpt1", "tokenizer.lowercase=false"], "is for wordpiece"),
        (["seed=99999999999"], "seed is 99999999999; it must be at most 2,147,483,647"),
        (["optimizer.b2=1.5"], "optimizer.b2 is 1.5; it must be under 1"),
        (["parallel.data=2"], "jit uses 1 device"),
        (["tokenizer.path=./nowhere"], "./nowhere: no such file or folder"),
        (["model.init_revision=v1"], "model.init_revision is of a model on the hub; give the model's name as model.i"),
        (["data.train=[1,2]"], "must be a path or a list of paths"),
        (["parallel.strategy=mesh", "parallel.data=9"], "there are 8 devices"),
        (["steps"], "error: 'steps': overrides look like train.steps=1000, without spaces"),
        (["train.dtype=float16"], "choose one of float32, bfloat16"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(overrides, expected, config_file, tmp_path, capsys):
    line = fails(capsys, "pretrain", config_file, f"out={tmp_path}/out", f"data.store={tmp_path}/store", *overrides)
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_place_is_told_before_the_work(config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(token_store, "_train_tokenizer", lambda *_: pytest.fail("a tokenizer is trained"))
    (tmp_path / "file").write_text("")
    below = [f"out={tmp_path}/file/x", f"data.store={tmp_path}/store"]
    assert f"{tmp_path}/file is a file; choose a folder as out" in fails(capsys, "pretrain", config_file, *below)
    mine = [f"out={tmp_path}/out", f"data.store={tmp_path}"]
    assert "not a token store, so it is not replaced" in fails(capsys, "pretrain", config_file, *mine)


@pytest.mark.parametrize(
    ("before", "meanwhile"), [(signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)]
)
def test_ctrl_c_ends_a_tokenizers_training_at_once(before, meanwhile, config_file, tmp_path, monkeypatch):
    seen = []

    def train(*arguments):
        seen.append(signal.getsignal(signal.SIGINT))
        return train_wordpiece(*arguments)

    monkeypatch.setattr(token_store, "train_wordpiece", train)
    found = signal.signal(signal.SIGINT, before)
    try:
        assert main(["prepare", str(config_file), f"out={tmp_path}/out", f"data.store={tmp_path}/store"]) == 0
        assert seen == [meanwhile]
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, found)


def test_missing_files_and_arguments_are_one_line(capsys, tmp_path):
    assert "none.yaml: no such file" in fails(capsys, "pretrain", tmp_path / "none.yaml")
    assert "neither a run folder (no config.yaml) nor a model folder" in fails(capsys, "fill-mask", tmp_path, "[MASK]")
    assert "no metrics.jsonl" in fails(capsys, "report", tmp_path)
    assert "pretrian: no such command; did you mean pretrain?" in fails(capsys, "pretrian")
    assert "--prompt" in fails(capsys, "generate", tmp_path)
    (tmp_path / "bad.yaml").write_text("train: [", encoding="utf-8")
    assert "bad.yaml: not YAML" in fails(capsys, "pretrain", tmp_path / "bad.yaml")


def test_an_empty_corpus_leaves_no_store(config_file, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    overrides = [f"data.train={tmp_path}/empty.txt", f"out={tmp_path}/out", "data.store=null"]
    assert "contains no text" in fails(capsys, "pretrain", config_file, *overrides)
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))


def test_a_removed_folder_ends_the_run_with_one_line(config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop.TrainLoop, "log", lambda self: shutil.rmtree(tmp_path / "out") or self.record("train", {}))
    assert main(["pretrain", str(config_file), f"out={tmp_path}/out", "train.tracker=none"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path}/out/metrics.jsonl was removed while the run wrote to it")


def test_the_folder_of_another_configuration_is_refused(bert_run, config_file, capsys):
    line = fails(capsys, "pretrain", config_file, "optimizer.learning_rate=0.1", "seed=3", "train.log_every=1")
    assert "optimizer.learning_rate (0.003 -> 0.1), seed (0 -> 3)" in line
    assert "log_every" not in line
    assert f"out=ANOTHER model.init_from={bert_run}. A resumed run may change keys such as train.steps, " in line


def test_another_folder_is_never_replaced_by_a_store(config_file, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.txt").write_text("precious")
    line = fails(capsys, "prepare", config_file, f"out={tmp_path}/out", f"data.store={tmp_path}/texts")
    assert "not a token store" in line
    assert (tmp_path / "texts" / "mine.txt").read_text() == "precious"


def test_too_little_held_out_text_for_pairs_is_told_before_training(config_file, documents, tmp_path, capsys):
    (tmp_path / "eval.txt").write_text(documents[0])
    overrides = [f"out={tmp_path}/out", f"data.store={tmp_path}/store", f"data.eval={tmp_path}/eval.txt"]
    assert "at least two documents" in fails(capsys, "pretrain", config_file, *overrides)
    assert not (tmp_path / "out").exists()


def test_weights_to_start_from_fix_the_sizes(bert_run, config_file, tmp_path, capsys):
    overrides = [f"model.init_from={bert_run}", "model.preset=null", f"out={tmp_path}/out"]
    line = fails(capsys, "pretrain", config_file, *overrides, "model.max_positions=64")
    assert "model.max_positions is 64, but the initial weights have 32" in line


def test_a_text_without_mask_is_refused(bert_run, capsys):
    assert "has no [MASK]" in fails(capsys, "fill-mask", bert_run, "no mask here")


def test_a_diverging_run_exits_with_1_and_keeps_its_checkpoint(bert_run, config_file, tmp_path, capsys):
    store = config_file.parent / "bert_store"
    overrides = [f"out={tmp_path}", f"data.store={store}", "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0"]
    overrides += ["optimizer.schedule=constant", "checkpoint.every=1", "train.steps=20", "train.log_every=20"]
    assert main(["pretrain", str(config_file), *overrides]) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert "scores only 100 predicted tokens" in warning
    assert error.startswith("error: step ")
    step = int(error.split()[2].rstrip(":"))
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert kept
    assert max(kept) < step


def test_memory_and_disk_faults_are_told_with_what_to_do(capsys):
    with pytest.raises(Exception, match=r"(?i)memory|exhausted") as caught:
        jnp.zeros(1 << 50).block_until_ready()
    assert explain(caught.value) == 2
    assert "lower the batch (train.batch_size, or --batch-size" in capsys.readouterr().err
    assert explain(OSError(errno.ENOSPC, "No space left on device", "tokens.bin")) == 2
    assert "disk full" in capsys.readouterr().err
    assert explain(ValueError("RESOURCE_EXHAUSTED: Failed to write to file: No space left on device")) == 2
    assert "disk full" in capsys.readouterr().err
    assert explain(PermissionError(errno.EACCES, "Permission denied", "runs")) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_fault_of_the_program_shows_its_traceback(capsys):
    assert explain(KeyError("oops")) == 1
    assert "KeyError" in capsys.readouterr().err


def test_help_and_a_wrong_key_answer_without_loading_jax(config_file):
    code = "import sys, train.__main__ as m; code = m.main(sys.argv[1:]); print(code, 'jax' in sys.modules)"
    command = [sys.executable, "-c", code, "pretrain", str(config_file), "train.stepz=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 False"
    assert subprocess.run([sys.executable, "-m", "train", "--help"], capture_output=True, check=True).stdout


@pytest.mark.parametrize(("closed", "code"), [("stdout", 0), ("stderr", 1)])
def test_only_a_reader_of_the_output_that_left_is_no_fault(closed, code):
    reading, writing = os.pipe()
    os.close(reading)
    script = f"import sys; from train.__main__ import leave_broken_pipe as leave\n\
try: print('x', file=sys.{closed}, flush=True)\nexcept BrokenPipeError: sys.exit(leave())"
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: writing}
    done = subprocess.run([sys.executable, "-c", script], check=False, **streams)
    os.close(writing)
    assert done.returncode == code
