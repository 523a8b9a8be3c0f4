"""The commonest mistakes, each as a user makes it: the command, its exit code and the line on stderr."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import bertgpt
from bertgpt.model.inputs import example_ids
from train.__main__ import main

COMMANDS = (
    "prepare, pretrain, finetune, glue, squad, plan, report, fill-mask, evaluate, predict, generate, embed, score, "
    "inspect, export"
)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 440449768\n"
LFS = (
    "is a git-lfs pointer, not the file itself; install git-lfs and run git lfs pull in its folder, or download the "
    "file"
)
ROWS = "text,label\na fine film,pos\na poor film,neg\n"
FILES = {
    "text.txt": "".join(f"film {number} is good . it is fine .\n\n" for number in range(100)),
    "latin.txt": b"the film is good\n\ncaf\xe9\n",
    "rows.jsonl": '{"body": "a film"}\n{"body": "a plot"}\n',
    "broken.jsonl": '{"text": "a film"}\n{"text": \n',
    "lfs.txt": POINTER,
    "reviews.csv": ROWS,
    "numbers.csv": "text,label\na fine film,1\na poor film,0\n",
    "columns.csv": ROWS.replace("text,", "review,"),
    "ragged.csv": ROWS + "fine, but long,pos\n",
    "stars.csv": "text,label\na fine film,0.5\na poor film,\n",
    "tags.tsv": "the\tO\nAPC2\tB-GENE\n\n",
    "train.xlsx": b"PK\3\4",
    "tabs.yaml": "train:\n\tsteps: 3\n",
    "flat.yaml": "train.steps: 3\n",
    "names.yaml": "learning_rate: 3.0e-5\n",
}
DEMO = "pretrain bert_demo data.train=text.txt out=new"
TUNE = "finetune bert_sentiment model.init_from=bert data.eval=null out=new"
TAG = "finetune bert_entities model.init_from=bert data.sequence_length=32 out=new"
MISTAKES = {  # command -> the line without "error: "; ... is any text; every exit code is 2
    # the command line
    "pretrian bert_demo": f"pretrian: no such command; did you mean pretrain? the commands are {COMMANDS}",
    "pretrain": "the following arguments are required: CONFIG; see python -m train pretrain --help",
    "pretrain bert_dmo": "bert_dmo: no such file or recipe; did you mean bert_demo? the recipes are ...",
    "pretrain missing.yaml": "missing.yaml: no such file",
    "pretrain bert": "bert: is a folder; give a YAML file (of a run: bert/config.yaml)",
    "pretrain text.txt": "text.txt: not a configuration: ...",
    "pretrain tabs.yaml": "tabs.yaml: not YAML: line 2: ...",
    "pretrain flat.yaml": "flat.yaml: train.steps: dotted keys are for overrides; in a file, nest the keys",
    "pretrain names.yaml": "names.yaml: unknown key learning_rate; did you mean optimizer.learning_rate?",
    "pretrain bert_demo --lr 3e-5": (
        "unrecognized arguments: --lr 3e-5; settings are given as key=value; --lr is optimizer.learning_rate;"
        " see python -m train pretrain --help"
    ),
    "pretrain bert_demo --per_device_train_batch_size=8": (
        "unrecognized arguments: --per_device_train_batch_size=8; settings are given as key=value; "
        "--per_device_train_batch_size is train.batch_size, which counts the rows of all devices together; see "
        "python -m train pretrain --help"
    ),
    "pretrain bert_demo train.steps = 3": (
        "'train.steps': overrides look like train.steps=1000, without spaces or in quotes"
    ),
    "pretrain data.train=text.txt out=new": (
        "data.train=text.txt: the first argument must be a YAML file or a recipe, such as bert_demo; settings follow"
    ),
    "pretrain bert_demo --output_dir new --num_train_epochs 3": (
        "unrecognized arguments: --output_dir new --num_train_epochs 3; settings are given as key=value; "
        "--output_dir is out; --num_train_epochs is train.epochs for tasks; for pretraining, train.steps; see "
        "python -m train pretrain --help"
    ),
    "pretrain bert_demo data.train=reviews.csv out=new": (
        "reviews.csv: a table is not read as text; write the column of texts to .txt or .jsonl"
    ),
    "pretrain bert_demo steps=3": "steps=3: unknown key steps; did you mean train.steps?",
    "pretrain bert_demo train.step=3": "train.step=3: unknown key train.step; did you mean train.steps?",
    "pretrain bert_demo optimizer.lr=3e-5": (
        "optimizer.lr=3e-5: unknown key optimizer.lr; here it is optimizer.learning_rate"
    ),
    "pretrain bert_demo train.steps=ten": "train.steps is 'ten'; it must be a whole number",
    "pretrain bert_demo train.steps=1e5": "train.steps is '1e5'; it must be a whole number",
    "pretrain bert_demo train.steps=99999999999999999999": (
        "train.steps is 99999999999999999999; it must be at most 2,147,483,647"
    ),
    "pretrain bert_demo train.dtype=fp16": "train.dtype is 'fp16'; choose one of float32, bfloat16",
    "pretrain bert_demo out=": "out is empty; it must be a text",
    # sizes
    f"{DEMO} train.batch_size=99999999999": "train.batch_size is 99999999999; it must be at most 2,147,483,647",
    f"{DEMO} train.batch_size=1000000000": (
        "train.batch_size 1000000000 with train.accumulate 1 needs at least 6,144.0 GB on each device...; lower "
        "train.batch_size or raise train.accumulate"
    ),
    f"{DEMO} train.batch_size=8 train.accumulate=3": (
        "train.batch_size 8 is not divisible by 8 devices x train.accumulate 3; choose a multiple of 24"
    ),
    f"{DEMO} model.num_layers=1000000": "model.num_layers is 1000000; it must be at most 1,000",
    f"{DEMO} model.hidden_size=2000000000": (
        "model.hidden_size is 2000000000: with it the model has over 1,099,511,627,776 parameters; lower it"
    ),
    f"{DEMO} model.hidden_size=130": "model.hidden_size 130 is not divisible by model.num_heads 4; choose a multiple",
    f"{DEMO} model.hidden_size=200000": (
        "a model of ...; choose a smaller model (model.num_layers, "
        "model.hidden_size, model.vocab_size), or more devices"
    ),
    f"{DEMO} tokenizer.vocab_size=99999999999": "tokenizer.vocab_size is 99999999999; it must be at most 1,000,000",
    f"{DEMO} data.sequence_length=1024": (
        "data.sequence_length 1024 is over model.max_positions 512; lower it, or raise model.max_positions"
    ),
    # pretraining: the text and the model
    "pretrain bert_demo data.train=missing.txt out=new": "missing.txt: no such file...",
    "pretrain bert_demo data.train=latin.txt out=new": (
        "latin.txt line 3: not UTF-8 (byte 0xe9); convert the file, for example with iconv"
    ),
    "pretrain bert_demo data.train=rows.jsonl data.text_key=text out=new": (
        "rows.jsonl line 1: no text under 'text' (found keys body); set data.text_key"
    ),
    "pretrain bert_demo data.train=broken.jsonl data.text_key=text out=new": (
        "broken.jsonl line 2: not JSON: Expecting value"
    ),
    "pretrain bert_demo data.train=lfs.txt out=new": f"lfs.txt: {LFS}",
    "pretrain bert_base model.preset=bert_bas out=new data.train=text.txt": (
        "model.preset 'bert_bas' is unknown; choose one of ..."
    ),
    "pretrain bert_mlm model.init_from=nowhere/bert data.train=text.txt out=new": (
        "model.init_from: nowhere/bert: no such folder, no copy in the hub's cache, and HF_HUB_OFFLINE is set"
    ),
    "pretrain bert_mlm model.init_from=lfs data.train=text.txt out=new": f"lfs/model.safetensors: {LFS}",
    "pretrain bert_mlm model.init_from=roberta data.train=text.txt out=new": (
        "roberta/config.json: model_type 'roberta' is not supported; it must be bert or openai-gpt"
    ),
    "pretrain bert_mlm model.init_from=other_words data.train=text.txt out=new": (
        "model.init_from: its tokenizer has 250 tokens, and the embedding of its weights only 200 rows; put the "
        "tokenizer of these weights into its folder, or first enlarge the embedding (resize_token_embeddings in "
        "transformers)"
    ),
    "pretrain bert_mlm model.init_from=no_tokenizer data.train=text.txt out=new": (
        "no_tokenizer: no tokenizer.json, vocab.txt, or vocab.json with merges.txt; add the model's tokenizer"
    ),
    "pretrain bert_mlm model.init_from=gpt data.train=text.txt out=new": (
        "train.objective mlm is for BERT, and gpt is a GPT-1; set train.objective=clm"
    ),
    f"{DEMO} model.init_from=bert model.hidden_size=64": (
        "model.hidden_size is 64, but the initial weights have 16; add model.hidden_size=null"
    ),
    f"{DEMO} model.init_from=bert tokenizer.path=bert": (
        "tokenizer.path conflicts with model.init_from; add tokenizer.path=null"
    ),
    f"{DEMO} tokenizer.path=no_unknown": "no_unknown/vocab.txt: no [UNK]; BERT needs it; give a BERT's vocabulary",
    f"{DEMO} tokenizer.path=lfs/config.json": (
        "lfs/config.json: not a tokenizer: expected `,` or `}` at line 1 column 17"
    ),
    "pretrain bert_sentiment data.train=text.txt out=new": (
        "task.kind classification is for fine-tuning; use finetune, or add task.kind=null"
    ),
    # fine-tuning
    "finetune bert_demo data.train=reviews.csv out=new": "task.kind is missing; choose one of ..., or use pretrain",
    "finetune bert_sentiment out=new": "data.train: data/SST-2/train.tsv: no such file...",
    f"{TUNE} data.train=columns.csv task.text=text": (
        "columns.csv line 2: column 'text' is missing (columns: review, label); set task.text to another, or name"
        " the columns in the first line"
    ),
    f"{TUNE} data.train=ragged.csv task.text=text": (
        "data.train: ragged.csv line 4: 3 cells, but the header has 2; quote cells that contain commas"
    ),
    f"{TUNE} data.train=stars.csv data.eval=stars.csv task.text=text data.sequence_length=32": (
        "stars.csv line 3: the label is empty; fill it in or remove the row"
    ),
    f"{TUNE} data.train=tags.tsv data.sequence_length=32 task.text=text": (
        "tags.tsv line 2: column 'text' is missing (columns: the, O); set task.text to another, or name the "
        "columns in the first line"
    ),
    f"{TUNE} data.train=train.xlsx": "data.train: train.xlsx: unknown file format; give one of ...",
    f"{TAG} data.train=tags.tsv data.eval=tags.tsv": (
        "tags.tsv line 2: column 'tags' is missing (columns: the, O); set task.tags to another, or name the "
        "columns in the first line; if each line is a word and its tag, rename the file to .conll"
    ),
    # trained models
    'fill-mask bert "the film is good"': "'the film is good' has no [MASK]; put one in place of the word to predict",
    "fill-mask bert the film is [MASK]": (
        "unrecognized arguments: film is [MASK]; put a text of several words in quotes; see python -m train "
        "fill-mask --help"
    ),
    'fill-mask gpt "the film is [MASK]"': "fill-mask needs a BERT, and this run is a GPT-1; use generate",
    'fill-mask nowhere/bert "a [MASK]"': (
        "nowhere/bert: no such folder, no copy in the hub's cache, and HF_HUB_OFFLINE is set"
    ),
    "fill-mask bert 'caf\udce9 [MASK]'": "a text is not UTF-8: 'caf\\udce9 [MASK]'; convert it",
    "generate bert --prompt film": "generate needs a GPT-1, and this run is a BERT; use fill-mask",
    "generate gpt film": "the following arguments are required: --prompt; see python -m train generate --help",
    "evaluate bert": "a BertForPreTraining has no task head; fine-tune it first",
    "evaluate tuned --data numbers.csv": (
        "numbers.csv line 2: label '1' is not among those of the training data (neg, pos); correct it, or "
        "add such rows to data.train"
    ),
    "predict tuned 'a fine film'": (
        "'a fine film': give a text with --text, in quotes, a file with --file, and settings as KEY=VALUE"
    ),
    "predict tuned --file missing.csv": "missing.csv: no such file...",
    "predict tuned --text film model.hidden_size=3": (
        "model.hidden_size=3: has no effect on a trained model; give keys of task. and data. only"
    ),
    "generate gpt --prompt film --samples 2000000000 --temperature 1": (
        "--samples must be at least 1 and at most 1,000,000"
    ),
    "export bert /proc/model": "cannot write or read: [Errno 2] No such file or directory: '/proc/...",
    f"fill-mask bert '{'a ' * 300}'": (
        f"'{'a ' * 48}a...{' a' * 48} ' has no [MASK]; put one in place of the word to predict"
    ),
    "predict bert --text a --pair b task.pair=c": "'task.pair=c': has no effect on a pretrained BERT; remove it",
    "predict tuned": "there are no texts; give --text, --file, or lines on standard input",
    "generate gpt --prompt film --top_k 3": (
        "unrecognized arguments: --top_k 3; did you mean --top-k? see python -m train generate --help"
    ),
    "evaluate tuned reviews.csv": "'reviews.csv': give rows with --data PATH, and settings as KEY=VALUE",
    "inspect text.txt": ("text.txt: is a file; give the folder of a run or model, or the name of a model on the hub"),
    "report nowhere": "nowhere: no such folder; give a run folder",
    "embed bert": "there are no texts; give some as arguments, with --file, or on standard input",
    "embed bert film --batch-size 99999999999": (
        "argument --batch-size: 99999999999 is too large; the maximum is 2,147,483,647; see python -m train embed"
        " --help"
    ),
    "export bert": "the following arguments are required: FOLDER; see python -m train export --help",
    "export bert run": "run is a run folder; give another folder, which is created or replaced",
    "report bert": "bert: no metrics.jsonl with rows; give a run folder, or wait for its first row",
    "plan bert_base --devices 0": "--devices is 0; give from 1 to 16,384",
}

pytestmark = pytest.mark.filterwarnings("ignore:.* does not use ")


def model_folder(folder: Path, architecture: str, config, tokenizer) -> None:
    """A model with random weights."""
    model = getattr(bertgpt, architecture)(config)
    params = model.init(jax.random.key(0), example_ids(architecture))["params"]
    bertgpt.save_pretrained(folder, model, params, tokenizer)


@pytest.fixture(scope="module")
def workplace(wordpiece, bpe, tmp_path_factory) -> Path:
    """A folder with data and models, among them damaged ones."""
    home = tmp_path_factory.mktemp("workplace")
    for name, content in FILES.items():
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    sizes = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "mlp_size": 64, "max_positions": 32}
    bert = bertgpt.presets.bert_tiny(vocab_size=wordpiece.get_vocab_size(), **sizes)
    gpt = bertgpt.presets.gpt1(vocab_size=bpe.get_vocab_size(), **sizes)
    model_folder(home / "bert", "BertForPreTraining", bert, wordpiece)
    model_folder(home / "gpt", "OpenAIGPTLMHeadModel", gpt, bpe)
    labelled = bertgpt.presets.bert_tiny(vocab_size=wordpiece.get_vocab_size(), **sizes, labels=("neg", "pos"))
    model_folder(home / "tuned", "BertForSequenceClassification", labelled, wordpiece)
    for name in ("lfs", "roberta", "other_words", "no_tokenizer", "no_unknown"):
        shutil.copytree(home / "bert", home / name)
    (home / "lfs" / "model.safetensors").write_text(POINTER)
    described = json.loads((home / "bert" / "config.json").read_text())
    (home / "roberta" / "config.json").write_text(json.dumps(described | {"model_type": "roberta"}))
    words = (home / "bert" / "vocab.txt").read_text()
    for name in ("other_words", "no_tokenizer", "no_unknown"):
        (home / name / "tokenizer.json").unlink()
    (home / "other_words" / "vocab.txt").write_text(words + "".join(f"word{number}\n" for number in range(50)))
    (home / "no_unknown" / "vocab.txt").write_text(words.replace("[UNK]\n", ""))
    (home / "no_tokenizer" / "vocab.txt").unlink()
    (home / "run" / "checkpoints").mkdir(parents=True)
    return home


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(workplace, command, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    before = sorted(workplace.rglob("*"))
    assert main(shlex.split(command)) == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert all(other.startswith("warning: ") for other in others)
    start, dots, end = f"error: {MISTAKES[command]}".partition("...")
    assert line == start if not dots else line.startswith(start) and line.endswith(end)
    assert sorted(workplace.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("nowhere", "JAX_PLATFORMS is nowhere, but JAX cannot use it: Unable to initialize backend 'nowhere'"),
        ("cuda", "JAX_PLATFORMS is cuda, but JAX cannot use it: "),
    ],
)
def test_a_platform_that_is_missing_is_named(workplace, platform, expected):
    if platform == "cuda" and jax.default_backend() == "gpu":
        pytest.skip("this machine has it")
    environment = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "train", "fill-mask", "bert", "a [MASK]"]
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    line = result.stderr.splitlines()[-1]
    assert (result.returncode, line.count("Traceback")) == (2, 0)
    assert line.startswith(f"error: {expected}")
    assert line.endswith("; set it to cpu, or install the platform (cuda, tpu: make install EXTRA=cuda or EXTRA=tpu)")
