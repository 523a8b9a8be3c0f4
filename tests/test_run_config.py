"""The run's configuration: texts arrive as they were given, numbers are what they look like, paths are local."""

import math
import os
import re
import shutil
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertgpt
from bertgpt.errors import excerpt
from train import hints
from train.__main__ import main
from train.config import differences, flatten, keep_decided, load, load_run, option_hint, override, save, to_dict
from train.sections import KEYS, RunConfig

TEXTS = ["007", "1e3", "1_000", "0x10", "no", "NULL", "true", "2024-01-01", "1:30", "#2", "#2 String", "run #2", "a: b"]
TEXTS += [
    "${x}",
    "${x",
    "\\${x}",
    "???",
    "~",
    "[a]",
    "{a: b}",
    "- a",
    " a ",
    "a=b",
    "&a",
    "*a",
    "!!int 3",
    "<<",
    "=",
    "%",
]
TEXTS += ["'a'", '"a"', "a\nb", "a\r\nb", "\x85", "\u2028", "\ufeff", "\x00", "\udc80", "größe", "a" * 200, "a b " * 60]
TEXT = st.one_of(st.text(min_size=1), st.sampled_from(TEXTS), st.text(" \n\t\x85:#-'\"\\[]{}a~", min_size=1))
TRAIN = "a path or a list of paths, or paths with weights above 0, or null"
PATH_KEYS = ["out", "data.train", "data.eval", "data.store", "model.init_from", "tokenizer.path"]


def flat(config: RunConfig) -> dict:
    return flatten(to_dict(config))


@pytest.fixture
def read(tmp_path):
    """(YAML, *overrides) -> every value by its dotted key."""

    def read(text, *overrides):
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return flat(load(str(tmp_path / "run.yaml"), overrides))

    return read


@pytest.fixture
def refused(read):
    """(YAML, *overrides) -> the error's one line."""

    def refused(text, *overrides):
        with pytest.raises(bertgpt.InputError) as caught:
            read(text, *overrides)
        return str(caught.value)

    return refused


def nested(key: str, value: str) -> str:
    """A file of one key."""
    section, _, name = key.rpartition(".")
    return f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\n"


# Texts of the command line


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["task.pair", "task.choices", "data.text_key"])
def test_an_override_gives_its_text_literally(key, text, read):
    if key == "task.choices" and text == "[a]":
        return
    assert read("seed: 0", f"{key}={text}")[key] == text


@given(TEXT.filter(lambda text: text != "null"))
def test_any_text_is_literal(text):
    config = override(RunConfig(), [f"task.pair={text}"])
    assert config.task.pair == text
    assert override(config, ["task.label=no"]).task.pair == text  # a second change, as evaluate makes, keeps it


def test_null_and_nothing_on_the_command_line(read, refused):
    assert read("task: {pair: a}", "task.pair=null")["task.pair"] is None
    assert "out is null; it must be a text" in refused("", "out=null")
    assert "task.pair is empty; it must be a text, or null" in refused("", "task.pair=")
    assert f"data.train is empty; it must be {TRAIN}" in refused("", "data.train=")


@pytest.mark.parametrize("key", ["data.train", "data.eval", "task.choices"])
def test_a_list_on_the_command_line_is_one_of_texts(key, read, refused):
    assert read("", f"{key}=[a, 'run #2', \"b, c\", gs://x/*.txt]")[key] == ["a", "run #2", "b, c", "gs://x/*.txt"]
    for text in ("[1, 2]", "[a, no]", "[a, [b]]", "[a, null]", "[a #2, b]", "[a, {b: c}]", "[a, '']", "[]", "[a]]"):
        assert f"{key} is {text}; it must be a " in refused("", f"{key}={text}")
        assert "or a list of" in refused("", f"{key}={text}")


def test_a_bracket_alone_makes_no_list(read):
    assert read("", "data.train=[a].txt")["data.train"] == "[a].txt"
    assert read("", "data.train=./[ab]")["data.train"] == "./[ab]"
    assert read("", "out=[a]", "task.label=[a]")["out"] == "[a]"


# Texts of a file


@pytest.mark.parametrize("key", ["out", "task.label", "task.pair", "tokenizer.path", "data.train", "task.choices"])
@pytest.mark.parametrize(
    "text",
    ["007", "1_000", "1e3", "1.50", "0x10", "1:30", "no", "Yes", "on", "2024-01-01", ".inf", "=", "${x}", "${x", "???"],
)
def test_a_file_gives_a_text_as_it_is_spelt(key, text, read):
    assert read(nested(key, text))[key] == text


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("run # the second", "run"),
        ("run#2", "run#2"),
        ("'run #2'", "run #2"),
        ('"a\\tb"', "a\tb"),
        ("'null'", "null"),
        ("'~'", "~"),
        ("|-\n    a\n    b", "a\nb"),
        ("!!str 007", "007"),
        ("!!int 007", "007"),
    ],
)
def test_comments_quotes_and_blocks_keep_their_meaning(yaml, text, read):
    assert read(nested("task.pair", yaml))["task.pair"] == text


@pytest.mark.parametrize("yaml", ["null", "Null", "NULL", "~", "", "# nothing", "!!null a"])
def test_null_and_nothing_in_a_file_are_absent(yaml, read, refused):
    found = read(nested("task.pair", yaml) + nested("train.epochs", yaml) + nested("data.train", yaml))
    assert (found["task.pair"], found["train.epochs"], found["data.train"]) == (None, None, None)
    assert "run.yaml: out is null; it must be a text" in refused(nested("out", yaml))
    assert "run.yaml: train.steps is null; it must be a whole number" in refused(nested("train.steps", yaml))


def test_items_of_a_list_in_a_file_are_as_they_are_spelt(read, refused):
    assert read("data: {train: [007, no, 'a, b']}")["data.train"] == ["007", "no", "a, b"]
    assert read("task:\n  choices:\n  - 1e3\n  - ${x}")["task.choices"] == ["1e3", "${x}"]
    for items in ("[]", "[~]", "[[a]]", "[{a: b}]", "['']"):
        assert f"data.train is a list; it must be {TRAIN}" in refused(f"data: {{train: {items}}}")
    assert "out is a list; it must be a text" in refused("out: [a]")
    assert "data.train is a mapping; it must be a path" in refused("data: {train: {a: b}}")
    assert "task.pair is empty; it must be a text" in refused("task: {pair: ''}")


def test_anchors_and_merges_are_read_and_no_key_twice(read, refused):
    found = read("seed: &n 010\nout: *n\ndata: {train: &t [007], eval: *t}")
    assert (found["seed"], found["out"], found["data.train"], found["data.eval"]) == (8, "010", ["007"], ["007"])
    found = read("train: {<<: [{steps: 2, patience: 1}, {steps: 3, log_every: 4}], patience: 5}")
    assert [found[f"train.{name}"] for name in ("steps", "patience", "log_every")] == [2, 5, 4]
    assert "not YAML: line 3: duplicate key out" in refused("out: a\nseed: 1\nout: b")
    assert "not YAML: line 1: duplicate key steps" in refused("train: {steps: 1, steps: 1}")
    assert "<< needs keys and values" in refused("train: {<<: 5}")
    assert "a key is not a text" in refused("? [a]\n: b")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: &t {<<: *t}", "nested too deeply"),
        ("[" * 600, "nested too deeply"),
        ("data: {train: &a [*a]}", "recursive"),
        (
            "a0: &a0 {b: c}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
            "unknown key a0",
        ),
        (
            "a0: &a0 [b]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)) + "out: *a59",
            "unknown key",
        ),
        ("train:\n  steps: [", "not YAML: line 2: "),
        ("seed: 1\n---\nseed: 2", "not YAML: line 2: "),
        ("out: 'a", "not YAML: line 1: "),
        ("\x01", "not YAML: "),
        ("- a", "must contain keys and values"),
        ("a", "must contain keys and values"),
        ("#" * (1 << 20) + "\n", "over 1048576 bytes"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_configuration_is_refused_at_once(yaml, message, refused):
    assert message in refused(yaml)


def test_bytes_that_are_no_utf8_and_no_file_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"out: \xff")
    with pytest.raises(bertgpt.InputError, match="run.yaml: not YAML: "):
        load(str(tmp_path / "run.yaml"))
    with pytest.raises(bertgpt.InputError, match="is a folder; give a YAML file"):
        load(str(tmp_path))


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3), TEXT, st.floats(0, 1e30), st.booleans())
def test_a_saved_configuration_reads_back_equal(tmp_path_factory, text, texts, name, rate, flag):
    path = tmp_path_factory.getbasetemp() / "saved.yaml"
    config = RunConfig()
    config.task.pair, config.task.choices, config.data.text_key, config.task.label = text, texts, name, name
    config.optimizer.learning_rate, config.data.pack = rate, flag
    config.out = config.data.store = f"./{text}".replace("\0", "")
    config.data.train, config.data.eval = [f"./{item}".replace("\0", "") for item in texts], "./eval"
    save(config, path)
    assert load(str(path)) == config


def test_a_saved_configuration_stays_readable(tmp_path):
    config = RunConfig()
    config.data.train, config.task.pair, config.optimizer.eps = ["größe.txt", "007"], "#2 String", 1e-6
    save(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("model:\n  preset: null\n")
    for line in ("  - größe.txt\n", "  - '007'\n", "  pair: '#2 String'\n", "  eps: 1.0e-06\n", "out: runs/run\n"):
        assert line in text


# Keys


@pytest.mark.parametrize(
    ("yaml", "overrides", "message"),
    [
        ("train: {stepz: 1}", [], "run.yaml: unknown key train.stepz; did you mean train.steps?"),
        ("", ["train.stepz=1"], "train.stepz=1: unknown key train.stepz; did you mean train.steps?"),
        ("train.steps: 5", [], "run.yaml: train.steps: dotted keys are for overrides"),
        ("~: 5", [], "unknown key None"),
        ("optimizer:", [], "run.yaml: optimizer must contain keys, such as optimizer.name"),
        ("train: 5", [], "run.yaml: train must contain keys, such as train.objective"),
        ("", ["train=5"], "train=5: train is a section; give one of its keys, such as train.objective"),
        ("", ["train.steps"], "'train.steps': overrides look like train.steps=1000, without spaces"),
        ("", ["=5"], "'=5': overrides look like train.steps=1000, without spaces"),
    ],
)
def test_a_key_that_is_none_is_named(yaml, overrides, message, refused):
    assert message in refused(yaml, *overrides)


@pytest.mark.parametrize(
    ("yaml", "overrides", "message"),
    [
        (r'out: "\UFFFFFFFF"', [], "run.yaml: not YAML that can be read"),
        (r'out: "a\0b"', [], r"out is 'a\x00b', which is not a valid file name"),
        (r'data: {train: ["a", "\uD800"]}', [], r"data.train is '\ud800', which is not a valid file name"),
        ("", ["train.profile=1:" + "9" * 5000], "train.profile is '1:99999"),
        ("", ["train.epochs=2e6"], "train.epochs is 2000000.0; it must be under 1,000,000"),
    ],
)
def test_what_no_file_and_no_number_can_be_is_named(yaml, overrides, message, refused):
    assert message in refused(yaml, *overrides)


def test_a_folder_does_not_hide_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert_demo").mkdir()
    assert load("bert_demo").model.preset == "bert_tiny"
    (tmp_path / "gpt1").write_text("seed: 7\n")
    assert load("gpt1").seed == 7


def test_of_a_preset_and_an_init_from_the_later_one_wins(read):
    file = "model: {preset: bert_tiny, num_heads: 4}"
    found = read(file, "model.init_from=runs/a", "model.init_step=3")
    assert (found["model.preset"], found["model.init_from"], found["model.init_step"]) == (None, "runs/a", 3)
    assert found["model.num_heads"] == 4
    found = read("model: {init_from: runs/a, init_step: 3}", "model.preset=bert_tiny")
    assert (found["model.preset"], found["model.init_from"], found["model.init_step"]) == ("bert_tiny", None, None)
    for both in (read(file, "model.init_from=a", "model.preset=gpt1"), read("model: {preset: gpt1, init_from: a}")):
        assert (both["model.preset"], both["model.init_from"]) == ("gpt1", "a")  # refused when the run starts
    assert read(file, "model.init_from=null")["model.preset"] == "bert_tiny"


def test_every_key_has_a_type_that_is_read():
    assert set(KEYS) == set(flat(RunConfig()))
    assert {key.types[0] for key in KEYS.values()} == {str, bool, int, float, list[float]}
    for key, value in flat(RunConfig()).items():
        assert type(value) in [typing.get_origin(kind) or kind for kind in KEYS[key].types]
        lists = any(typing.get_origin(kind) is list for kind in KEYS[key].types)
        assert lists == (KEYS[key].rules.wanted is not None)


# Numbers


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "5", 5),
        ("train.steps", "1_000", 1000),
        ("train.steps", "0x10", 16),
        ("train.steps", "'5'", 5),
        ("train.steps", "5 # five", 5),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("optimizer.learning_rate", "5.0e-5", 5e-5),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.clip_norm", ".5", 0.5),
        ("train.epochs", "null", None),
        ("train.epochs", "~", None),
        ("train.epochs", "", None),
        ("data.pack", "true", True),
        ("data.pack", "YES", True),
        ("data.pack", "on", True),
        ("data.pack", "y", True),
        ("data.pack", "1", True),
        ("tokenizer.lowercase", "off", False),
        ("tokenizer.lowercase", "0", False),
    ],
)
def test_numbers_and_truths_are_those_of_yaml(key, text, value, read):
    for found in (read("", f"{key}={text}")[key], read(nested(key, text))[key]):
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("train.steps", "true", "a whole number"),
        ("train.steps", "1.5", "a whole number"),
        ("train.batch_size", "1.0", "a whole number"),
        ("train.batch_size", "1e3", "a whole number"),
        ("train.batch_size", "many", "a whole number"),
        ("train.batch_size", "1:30", "a whole number"),
        ("train.batch_size", "2024-01-01", "a whole number"),
        ("train.batch_size", "${seed}", "a whole number"),
        ("train.batch_size", "9" * 5000, "a whole number"),
        ("train.batch_size", "!!bool a", "a whole number"),
        ("seed", "no", "a whole number"),
        ("data.workers", "yes", "a whole number, or null"),
        ("data.pack", "3", "true or false"),
        ("data.pack", "1.0", "true or false"),
        ("data.pack", "maybe", "true or false"),
        ("data.pack", "[true]", "true or false"),
        ("data.pack", "0x" + "f" * 5000, "true or false"),
        ("optimizer.learning_rate", "true", "a finite number"),
        ("optimizer.learning_rate", "1:30.5", "a finite number"),
        ("optimizer.learning_rate", "fast", "a finite number"),
        ("optimizer.learning_rate", "[1.0]", "a finite number"),
        ("optimizer.learning_rate", "{a: 1}", "a finite number"),
        ("task.null_threshold", "no", "a finite number, or null"),
    ],
    ids=lambda value: value[:20],
)
def test_what_would_have_to_change_to_be_a_number_is_refused(key, text, wanted, refused):
    for line in (refused("", f"{key}={text}"), refused(nested(key, text))):
        assert f"{key} is " in line
        assert line.endswith(f"; it must be {wanted}")
        assert len(line) < 400


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.types[0] is float])
@pytest.mark.parametrize("text", ["nan", ".nan", "inf", ".inf", "-.INF", "1e999", "9" * 400])
def test_no_key_takes_what_is_not_finite(key, text, refused):
    for line in (refused("", f"{key}={text}"), refused(nested(key, text))):
        assert f"{key} is {excerpt(repr(text))}; it must be a finite number" in line
    assert math.isfinite(flat(RunConfig())[key] or 0)


# Paths


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_tilde_in_a_path_is_the_home_folder(key, read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    for path, expected in {
        "~": "/home/ann",
        "~/run #2": "/home/ann/run #2",
        "~bob/x": "~bob/x",
        "./~/x": "./~/x",
        "a/~/x": "a/~/x",
    }.items():
        assert read("", f"{key}={path}")[key] == expected
        assert read(nested(key, f"'{path}'"))[key] == expected
    assert read(nested(key, "~/x"))[key] == "/home/ann/x"


def test_a_tilde_stays_where_no_path_is_meant(read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert read("", "data.train=[~/a, b, '~']")["data.train"] == ["/home/ann/a", "b", "/home/ann"]
    assert read("data: {eval: [~/a, '~/b']}")["data.eval"] == ["/home/ann/a", "/home/ann/b"]
    assert read("", "task.pair=~/x", "task.choices=~")["task.pair"] == "~/x"
    kept = ["gs://~/x", "package:name/~/x"]
    assert read("", f"data.train=[{', '.join(kept)}]")["data.train"] == kept


def test_a_tilde_without_a_home_folder_is_refused(refused, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user has no entry and no HOME
    assert "out is ~/x, but no home folder is known; set HOME or give the full path" in refused("out: ~/x")


@pytest.mark.parametrize("key", ["out", "data.store", "tokenizer.path"])
@pytest.mark.parametrize(
    "address", ["gs:/bucket/x", "s3://bucket", "file:///tmp/x", "simplecache::gs://b/x", "hf://buckets"]
)
def test_an_address_is_refused_where_a_folder_is_needed(key, address, read, refused):
    reason = ", an address; give a folder on a local or shared disk"
    if key != "tokenizer.path":
        reason = (
            "; give a folder in a bucket" if address.startswith("gs") else "; a run writes to a local folder or to gs:"
        )
    for line in (refused("", f"{key}={address}"), refused(nested(key, address))):
        assert f"{key} is {address}{reason}" in line
    assert read("", f"data.train={address}", f"data.eval=[{address}]")["data.train"] == address
    for path in ("runs/a:b", "a:b/c", "./gs://x", "C:/x", "/gs://x"):
        assert read("", f"{key}={path}")[key] == path


@pytest.mark.parametrize("key", ["model.init_from", "tokenizer.path"])
@pytest.mark.parametrize("address", ["hf://a/b", "https://huggingface.co/a/b", "https://huggingface.co/a/b/tree/main"])
def test_an_address_on_the_hub_is_answered_with_the_models_name(key, address, read, refused):
    assert f"{key} is {address}, an address; give the model's name, a/b" in refused("", f"{key}={address}")
    assert read("", f"{key}=a/b")[key] == "a/b"


@pytest.mark.parametrize(
    ("override", "revision", "commit"),
    [
        ("train.steps=2", "v1", "c0ffee"),
        ("model.init_revision=v2", "v2", None),
        ("model.init_from=c/d", "v1", None),
        ("model.preset=bert_tiny", None, None),
    ],
)
def test_a_commit_is_kept_only_with_its_model_and_revision(override, revision, commit, read):
    file = "model: {init_from: a/b, init_revision: v1, init_commit: c0ffee}"
    found = read(file, override)
    assert (found["model.init_revision"], found["model.init_commit"]) == (revision, commit)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "run.yaml", "data.store=s3://bucket/x"],
        ["pretrain", "run.yaml", "out=s3://bucket/x"],
        ["finetune", "run.yaml", "out=s3://bucket/x"],
        ["plan", "run.yaml", "out=s3://bucket/x"],
        ["export", "run", "gs://bucket/x"],
        ["export", "run", "gs://bucket/x", "--format", "stablehlo"],
        ["evaluate", "run", "--out", "gs://bucket/x"],
        ["evaluate", "gs://bucket/x"],
    ],
    ids=" ".join,
)
def test_no_command_makes_a_folder_of_an_address(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 0")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = "gs://bucket/x, an address; give a folder on a local or shared disk"
    assert (
        reason if "gs:" in " ".join(arguments) else "s3://bucket/x; a run writes to a local folder or to gs:"
    ) in line
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_python_writes_no_model_to_an_address(tmp_path, monkeypatch, saved):
    _, model, params = saved("BertModel")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for folder in ("gs://bucket/x", Path("gs://bucket/x")):
        with pytest.raises(bertgpt.InputError, match="gs:/bucket/x, an address; give a folder on a local"):
            bertgpt.save_pretrained(folder, model, params)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("other", hints.HINTS)
def test_a_key_of_another_program_is_answered_with_what_does_the_same(other, refused):
    wanted = f"unknown key train.{other}; here it is {hints.HINTS[other]}"
    if f"train.{other}" not in KEYS:
        assert wanted in refused("", f"train.{other}=1")
    named = re.findall(r"\b(?:model|tokenizer|data|optimizer|task|train|parallel|checkpoint)\.\w+", hints.HINTS[other])
    assert set(named) <= KEYS.keys()


def test_a_key_is_known_in_any_spelling_and_without_its_section(refused):
    for name in ("mlm_probability", "optimizer.mlm_probability", "--mlm-probability", "MLM_Probability"):
        assert f"unknown key {name}; here it is data.mask_rate" in refused("", f"{name}=0.2")
    assert "did you mean optimizer.learning_rate?" in refused("", "optimizer.learning_rat=1")


def test_steps_of_an_override_replace_the_epochs_of_a_recipe(read):
    recipe = "train:\n  epochs: 3\n"
    assert read(recipe, "train.steps=5")["train.epochs"] is None
    assert read(recipe, "train.steps=5", "train.epochs=2")["train.epochs"] == 2
    assert read(recipe, "train.batch_size=5")["train.epochs"] == 3
    assert read("train:\n  epochs: 3\n  steps: 5\n")["train.epochs"] == 3


def test_a_run_of_an_earlier_version_keeps_its_columns():
    old, new = (override(RunConfig(), given) for given in (["task.word_column=0", "task.tag_column=-1"], []))
    keep_decided(old, new)
    assert not differences(old, new)
    old, new = (override(RunConfig(), given) for given in (["task.word_column=2", "task.tag_column=-1"], []))
    keep_decided(old, new)
    assert len(differences(old, new)) == 2


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in KEYS.items() if key.types[0] in (int, float)])
def test_every_number_fits_32_bits(name, key, refused):
    assert "; it must be " in refused("", f"{name}={10**39}")
    if key.types[0] is int:
        assert "; it must be " in refused("", f"{name}={2**31}")


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--lr", "--lr is optimizer.learning_rate"),
        ("--train.steps", "--train.steps is train.steps=...; "),
        ("--batch-size", "--batch-size is train.batch_size=..."),
        ("--out", "--out is out=..."),
        ("--fp16", "--fp16 is train.dtype=bfloat16"),
    ],
)
def test_an_option_is_told_its_key(option, advice):
    assert advice in option_hint(option)
    assert option_hint("--no_such") == ""


def test_a_copied_run_is_not_resumed_in_its_old_place(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "checkpoints").mkdir(parents=True)
    save(override(RunConfig(), [f"out={old}"]), old / "config.yaml")
    shutil.copytree(old, new)
    assert load_run(str(old / "config.yaml")).out == str(old)
    with pytest.raises(bertgpt.InputError, match=rf"its out is {old}; add out={new} to train here, or out={old} to"):
        load_run(str(new / "config.yaml"), ["train.steps=3"])
    assert load_run(str(new / "config.yaml"), [f"out={new}"]).out == str(new)
    (new / "config.yaml").rename(new / "recipe.yaml")
    assert load_run(str(new / "recipe.yaml")).out == str(old)
