"""Models by name: the hub's unmodified client against a loopback server.

The client runs in subprocesses, since it reads HF_* when it is imported.
"""

import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import Fault, Hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from model_folders import assert_equal, change_config, make, rewrite, write_flax
from quick import QUICK
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import bertgpt
from bertgpt import hub as by_name
from bertgpt.tokenizers import train_wordpiece

ROOT = Path(__file__).parent.parent
PRELUDE = """
import json, sys, warnings
from pathlib import Path
import bertgpt
from bertgpt import load_pretrained, load_tokenizer
"""
# Prints the error of each of some calls.
ERRORS = """
from concurrent.futures import ThreadPoolExecutor
def error(call):
    try:
        return f"no error: {eval(call)}"
    except bertgpt.InputError as error:
        return f"{error}"
with ThreadPoolExecutor() as threads:
    print(*threads.map(error, json.loads(sys.argv[1])), sep="\\n")
"""
COMMANDS = """
from train.__main__ import main
for command in json.loads(sys.argv[1]):
    print("exit", main(command), flush=True)
"""


def run(hub: Hub, here: Path, code: str, *arguments: object, **environment: str) -> str:
    """What a process prints that runs the code in a folder, with the cache `cache` in it; its errors after the rest."""
    values = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "XLA_FLAGS": QUICK}
    values |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        env=hub.environment(here / "cache", **values | environment),
        capture_output=True,
        text=True,
        cwd=here,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def errors(hub: Hub, here: Path, calls: list[str], **environment: str) -> list[str]:
    """The messages of calls that fail."""
    lines = run(hub, here, ERRORS, json.dumps(calls), **environment).splitlines()
    return lines[: len(calls)]


def commands(hub: Hub, here: Path, *given: list[str], expected: int = 0, **environment: str) -> str:
    """What commands print, of which the last ends with the expected exit code, and the others with 0."""
    said = run(hub, here, COMMANDS, json.dumps(given), **environment)
    codes = [int(line.split()[1]) for line in said.splitlines() if line.startswith("exit ")]
    assert codes == [*[0] * (len(given) - 1), expected], said
    return said


def asked(hub: Hub, part: str) -> list[str]:
    """The paths with this part that were asked for."""
    return [path for _, path in hub.requests if part in path]


def write_bert(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    bertgpt.save_pretrained(folder, *make("BertForPreTraining", seed), tokenizer)
    return folder


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """A tokenizer whose vocabulary fits the small models."""
    return train_wordpiece(["a b c d e f g h i j"] * 3, 60)


@pytest.fixture
def hub(tmp_path, small):
    """A hub with the model owner/bert."""
    (tmp_path / "hub").mkdir()
    write_bert(tmp_path / "hub" / "owner" / "bert", small)
    with Hub(tmp_path / "hub") as server:
        yield server


def shard(folder: Path) -> None:
    """Splits the weights into two files and their index."""
    tensors = load_file(folder / "model.safetensors")
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def gamma_beta(tensors: dict) -> dict:
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((name.replace(new, old) for new, old in names.items() if new in name), name): value
        for name, value in tensors.items()
    }


def write_layouts(root: Path, small: Tokenizer) -> list[str]:
    """The models of a hub in the layouts that are found there; returns their names."""
    for name in ("whole", "vocab", "old", "sharded", "nsp", "flax", "flax_shards"):
        write_bert(root / "owner" / name, small)
    vocab = root / "owner" / "vocab"
    tokens = sorted(small.get_vocab(), key=small.get_vocab().get)
    (vocab / "tokenizer.json").unlink()
    (vocab / "vocab.txt").write_text("\n".join(tokens) + "\n")
    rewrite(root / "owner" / "old", gamma_beta)
    shard(root / "owner" / "sharded")
    write_flax(root / "owner" / "flax")
    (root / "owner" / "flax" / "pytorch_model.bin").write_text("not to be fetched")
    write_flax(root / "owner" / "flax_shards", shards=2)
    change_config(root / "owner" / "nsp", architectures=["BertForMaskedLM"])
    for unused in ("README.md", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "vocab.txt"):
        (root / "owner" / "whole" / unused).write_text("not to be fetched")
    bertgpt.save_pretrained(root / "gpt", *make("OpenAIGPTLMHeadModel"))
    (root / "gpt" / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1, "a": 2, "b</w>": 3, "ab</w>": 4}')
    (root / "gpt" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return [
        "owner/whole",
        "owner/vocab",
        "owner/old",
        "owner/sharded",
        "owner/nsp",
        "owner/flax",
        "owner/flax_shards",
        "gpt",
    ]


SAME = """
import jax, numpy as np, warnings
warnings.simplefilter("ignore")
root, names = Path(sys.argv[1]), json.loads(sys.argv[2])
for name in names:
    assert load_tokenizer(name).to_str() == load_tokenizer(root / name).to_str()
    (model, params), (other, expected) = load_pretrained(name), load_pretrained(root / name)
    assert model == other
    jax.tree.map(np.testing.assert_array_equal, params, expected)
"""


def test_every_layout_loads_by_name_as_from_its_folder_and_again_without_a_network(tmp_path, small):
    names = write_layouts(tmp_path / "hub", small)
    (tmp_path / "here").mkdir()
    with Hub(tmp_path / "hub") as hub:
        hub.moved["whole"] = "owner/whole"
        renamed = shutil.copytree(tmp_path / "hub" / "owner" / "whole", tmp_path / "hub" / "whole")
        run(hub, tmp_path / "here", SAME, tmp_path / "hub", json.dumps([*names, "whole"]))
        shutil.rmtree(renamed)
        fetched = {path.rpartition("/")[2] for path in asked(hub, "owner/whole/resolve/")}
        assert fetched == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
        assert not asked(hub, "pytorch_model.bin")
        hub.requests.clear()
        run(hub, tmp_path / "here", SAME, tmp_path / "hub", json.dumps(names), HF_HUB_OFFLINE="1")
        assert hub.requests == []
        hub.faults = {"owner/old": Fault(503), "gpt": Fault(429)}
        said = run(hub, tmp_path / "here", "load_pretrained('owner/old'), load_tokenizer('gpt')")
        assert said.count("the hub cannot be reached") == 2
    said = run(hub, tmp_path / "here", "load_pretrained('owner/old')")
    assert said.count(f"owner/old: the hub cannot be reached at {hub.address} (") == 1
    assert f"; using commit {hub.files('owner/old', 'main')[0]} from the cache" in said
    (tmp_path / "here" / "runs" / "mine").mkdir(parents=True)
    (line,) = errors(hub, tmp_path / "here", ["load_pretrained('rums/mne')"])
    assert line.startswith("rums/mne: no such folder, no copy in the hub's cache, and the hub cannot be reached at ")
    assert line.endswith("); did you mean runs/mine?")


def test_googles_checkpoint_is_fetched_with_its_data_files_only(tmp_path):
    google = ROOT / "tests" / "goldens" / "google"
    shutil.copytree(google / "training", tmp_path / "hub" / "owner" / "training")
    shutil.copytree(google / "shards", tmp_path / "hub" / "owner" / "shards")
    (tmp_path / "hub" / "owner" / "none").mkdir()
    shutil.copy(google / "shards" / "bert_config.json", tmp_path / "hub" / "owner" / "none")
    names = json.dumps(["owner/training", "owner/shards"])
    with Hub(tmp_path / "hub") as hub:
        run(hub, tmp_path, SAME, tmp_path / "hub", names)
        fetched = {path.rpartition("/")[2] for path in asked(hub, "owner/training/resolve/")}
        assert fetched == {
            *("bert_config.json", "vocab.txt", "checkpoint", "model.ckpt-1.index", "model.ckpt-2.index"),
            "model.ckpt-2.data-00000-of-00001",
        }
        run(hub, tmp_path, SAME, tmp_path / "hub", names, HF_HUB_OFFLINE="1")
        assert errors(hub, tmp_path, ["load_pretrained('owner/none')"]) == [
            "owner/none: the model on the hub has no bert_model.ckpt.index"
        ]


def test_a_tokenizer_is_fetched_without_weights(hub, tmp_path):
    code = "print(load_tokenizer('owner/bert').token_to_id('[MASK]'))"
    assert run(hub, tmp_path, code).startswith("4\n")
    assert not asked(hub, "model.safetensors")
    assert errors(hub, tmp_path, ["load_pretrained('owner/bert')"], HF_HUB_OFFLINE="1") == [
        "owner/bert: the cache has no model.safetensors, model.safetensors.index.json, flax_model.msgpack or "
        f"pytorch_model.bin of commit {hub.files('owner/bert', 'main')[0]}, and HF_HUB_OFFLINE is set"
    ]


MOVING = """
from huggingface_hub import HfApi
listed = HfApi.model_info
def list_and_move_on(*arguments, **options):
    found = listed(*arguments, **options)
    (Path(sys.argv[1]) / "tokenizer.json").unlink(missing_ok=True)
    (Path(sys.argv[1]) / "vocab.txt").write_text(sys.argv[2])
    return found
HfApi.model_info = list_and_move_on
print(load_tokenizer("owner/bert").get_vocab_size())
"""


def test_a_branch_that_moves_on_meanwhile_is_listed_again(hub, tmp_path):
    vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
    assert run(hub, tmp_path, MOVING, tmp_path / "hub" / "owner" / "bert", vocabulary).startswith("5\n")


def test_a_local_folder_comes_first_and_needs_no_client(hub, tmp_path):
    shutil.copytree(tmp_path / "hub" / "owner", tmp_path / "owner")
    code = "load_pretrained('owner/bert'); load_tokenizer('owner/bert'); print('huggingface_hub' in sys.modules)"
    assert run(hub, tmp_path, code).startswith("False\n")
    calls = ["load_pretrained('owner/bert', revision='v1')", "load_pretrained('./owner/bart')"]
    calls += ["load_pretrained(Path('owner/bart'))", "load_tokenizer('owner/vocab.txt')", "load_pretrained('a/b/c')"]
    assert errors(hub, tmp_path, calls) == [
        "owner/bert is a local path, which has no revision v1; give no revision",
        "./owner/bart: no such file or folder; did you mean owner/bert?",
        "owner/bart: no such file or folder; did you mean owner/bert?",
        "owner/vocab.txt: no such file or folder",
        "a/b/c: no such file or folder",
    ]
    assert hub.requests == []


def test_a_model_that_cannot_be_had_is_one_line(hub, tmp_path, small):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    models = tmp_path / "hub"
    for name in ("llama", "odd", "bare", "torch", "gated", "private"):
        write_bert(models / name, small)
    change_config(models / "llama", model_type="llama")
    (models / "odd" / "config.json").unlink()
    (models / "bare" / "model.safetensors").unlink()
    (models / "torch" / "model.safetensors").rename(models / "torch" / "pytorch_model.bin")
    (models / "gated" / "config.json").rename(models / "gated" / "tokenizer_config.json")  # the first to be asked for
    hub.faults["gated/tokenizer_config.json"] = Fault(403, "GatedRepo")
    hub.tokens["private"] = "secret"
    unknown = f"neither a local folder nor a model on the hub at {hub.address} (for a private model, set HF_TOKEN)"
    wanted = {
        "load_pretrained('runs/mne')": f"runs/mne: {unknown}; did you mean runs/mine?",
        "load_pretrained('private')": f"private: {unknown}",
        "load_pretrained('owner/bert', revision='v9')": "owner/bert: the model on the hub has no branch, tag or commit "
        "v9",
        "load_pretrained('llama')": "llama/config.json: model_type 'llama' is not supported; it must be bert or "
        "openai-gpt",
        "load_tokenizer('gated')": "gated: access to this model must be granted; ask for it at "
        f"{hub.address}/gated, and set HF_TOKEN to a token of your account",
    }
    assert errors(hub, tmp_path, list(wanted)) == list(wanted.values())
    assert not asked(hub, "model.safetensors")
    del hub.faults["gated/tokenizer_config.json"]
    (found,) = errors(hub, tmp_path, ["load_pretrained('private')"], HF_TOKEN="wrong")
    assert found.startswith(f"private: the hub at {hub.address} rejects the request: ")
    assert found.endswith("; check HF_TOKEN")
    wanted = {
        "load_pretrained('odd')": "odd: the model on the hub has no config.json",
        "load_pretrained('bare')": "bare: the model on the hub has no model.safetensors, model.safetensors.index.json, "
        "flax_model.msgpack or pytorch_model.bin",
        "sys.modules.update(torch=None) or load_pretrained('torch')": "torch/pytorch_model.bin: reading torch's format "
        "needs torch; install it, or convert the file on a machine with torch: from_pretrained(folder).save_pretrained("
        "folder) of transformers writes model.safetensors",
        "load_pretrained('https://huggingface.co/owner/bert')": "the model is https://huggingface.co/owner/bert, an "
        "address; give the model's name, owner/bert",
    }
    assert errors(hub, tmp_path, list(wanted), HF_TOKEN="secret") == list(wanted.values())
    assert not asked(hub, "pytorch_model.bin")
    run(hub, tmp_path, "load_pretrained('private')", HF_TOKEN="secret")  # and the token goes to no other host


def test_a_transfer_that_breaks_is_resumed_where_it_broke(hub, tmp_path):
    folder = tmp_path / "hub" / "owner" / "bert"
    rewrite(folder, lambda tensors: tensors | {"unused": np.zeros(1 << 22, np.float32)})  # over the client's 10 MiB
    hub.faults["owner/bert/model.safetensors"] = Fault(cut=1)
    errors(hub, tmp_path, ["load_pretrained('owner/bert')"])  # newer clients resume at once, others at the next attempt
    run(hub, tmp_path, SAME, tmp_path / "hub", json.dumps(["owner/bert"]))
    assert [method for method, path in hub.requests if path.startswith("/lfs")] == ["GET", "GET"]
    (resumed,) = hub.ranges
    assert int(resumed.strip("bytes=-")) >= 10 << 20


def test_after_a_failure_nothing_loads_and_a_later_attempt_fetches_what_is_missing(hub, tmp_path, small):
    models, last = tmp_path / "hub", "model-00002-of-00002.safetensors"
    shard(write_bert(models / "owner" / "sharded", small))
    write_bert(models / "owner" / "long", small)
    write_bert(models / "owner" / "tokenizer", small)
    write_bert(models / "owner" / "settings", small)
    hub.faults = {
        "owner/bert/model.safetensors": Fault(cut=-1),
        f"owner/sharded/{last}": Fault(status=403),
        "owner/long/model.safetensors": Fault(more=1),
        "owner/tokenizer/tokenizer.json": Fault(status=404, code="EntryNotFound"),
        "owner/settings/tokenizer_config.json": Fault(cut=-1),
    }
    names = ["bert", "sharded", "long", "tokenizer", "settings"]
    calls = [f"load_pretrained('owner/{name}')" for name in names]
    found = errors(hub, tmp_path, calls)
    assert found[0].startswith("owner/bert: model.safetensors cannot be downloaded: ")
    assert found[1].startswith(f"owner/sharded: the hub at {hub.address} rejects the request: 403 ")
    assert "model.safetensors cannot be downloaded: Consistency check failed: file should be of size " in found[2]
    assert found[3].startswith(f"owner/tokenizer: the hub at {hub.address} rejects the request: 404 ")
    snapshots = [*(tmp_path / "cache").glob("hub/models--owner--*/snapshots/*")]
    assert len(snapshots) == 5
    here = [f"load_pretrained({str(folder)!r})" for folder in snapshots]
    here += ["load_tokenizer('owner/tokenizer')", "load_tokenizer('owner/settings')"]
    found = errors(hub, tmp_path, [*calls, *here], HF_HUB_OFFLINE="1")
    for name, message in zip(names, found, strict=False):
        lacking = last if name == "sharded" else "model.safetensors"
        assert message.startswith(f"owner/{name}: the cache has no {lacking}"), message
        assert message.endswith("HF_HUB_OFFLINE is set")
    assert not any(message.startswith("no error") for message in found)
    hub.faults, before = {}, len(hub.requests)
    run(hub, tmp_path, SAME, models, json.dumps([f"owner/{name}" for name in names]))
    again = {path.rpartition("/")[2] for method, path in hub.requests[before:] if method == "GET" and "api" not in path}
    assert again == {"model.safetensors", last, "tokenizer.json", "tokenizer_config.json"}


@given(st.text("ab.-_/gitE9", max_size=12) | st.just("a" * 97) | st.text(max_size=5))
def test_a_name_is_what_the_client_takes_for_one(name):
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert by_name.NAME.fullmatch(name) is None
    else:
        assert by_name.NAME.fullmatch(name) or not name.isascii()


def test_a_run_notes_its_commit_and_resumes_without_a_network(hub, tmp_path, small):
    documents = [f"{a} {b} c\n{b} d {a}\ne f\n\n" for a in "abcdefghij" for b in "abcdef"]
    (tmp_path / "text.txt").write_text("".join(documents))
    values = {"model": {"init_from": "owner/bert"}, "data": {"train": "text.txt", "eval_fraction": 0.1, "workers": 1}}
    values["data"] |= {"sequence_length": 16, "sentence_per_line": True}
    values |= {
        "train": {"steps": 1, "batch_size": 4, "eval_every": 1, "eval_examples": 4, "tracker": "none"},
        "out": "run",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    first, _ = hub.files("owner/bert", "main")
    said = commands(hub, tmp_path, ["pretrain", "run.yaml"])
    assert f"model.init_from: owner/bert at commit {first}" in said
    assert noted(tmp_path / "run") == first
    shutil.copytree(tmp_path / "run", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints")  # as if it had ended before its first checkpoint

    write_bert(tmp_path / "hub" / "owner" / "bert", small, seed=1)  # main moves on
    hub.requests.clear()
    resumed = ["pretrain", "run.yaml", "train.steps=2"]
    said = commands(hub, tmp_path, resumed, ["plan", "run/config.yaml", "out=new"], HF_HUB_OFFLINE="1")
    assert "resuming from step 1" in said
    assert f"model.init_from: owner/bert at commit {first}" in said  # by the plan of another run from its configuration
    assert noted(tmp_path / "run") == first
    assert hub.requests == []

    changed = ["pretrain", "run.yaml", "model.init_revision=v2"]
    online = [["pretrain", "run.yaml", "out=early"], ["plan", "run.yaml", "out=new"], changed]
    early, new, rest = commands(hub, tmp_path, *online, expected=2).split("exit 0\n")
    second, _ = hub.files("owner/bert", "main")
    assert f"model.init_from: owner/bert at commit {first}" in early
    assert f"model.init_from: owner/bert at commit {second}" in new
    assert "run was started with different settings: model.init_revision (None -> v2), " in rest


def noted(out: Path) -> str:
    return yaml.safe_load((out / "config.yaml").read_text())["model"]["init_commit"]


def test_commands_take_names_and_revisions(hub, tmp_path, small):
    shutil.copytree(tmp_path / "hub" / "owner" / "bert", tmp_path / "hub" / "owner" / "bert@v1")
    write_bert(tmp_path / "hub" / "owner" / "bert", small, seed=1)
    bertgpt.save_pretrained(tmp_path / "hub" / "classes", *make("BertForSequenceClassification"), small)
    rows = [{"text": f"a b {letter}", "label": label} for letter in "cdefghij" for label in ("yes", "no")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune = ["task.kind=classification", "data.train=rows.jsonl", "data.sequence_length=16", "data.eval_fraction=0.5"]
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    said = commands(
        hub,
        tmp_path,
        ["export", "owner/bert", "copy", "--revision", "v1"],
        ["fill-mask", "owner/bert", "a [MASK]"],
        ["embed", "owner/bert", "a b"],
        ["predict", "classes", "--text", "a b"],
        ["plan", "run.yaml", *tune, "model.init_from=owner/bert", "model.init_revision=v1"],
        ["plan", "run.yaml", *tune, "model.preset=bert_tiny", "tokenizer.path=owner/bert"],
        ["evaluate", "classes", "--data", "rows.jsonl", "--out", "scores"],
        ["evaluate", "classes", "--data", "rows.jsonl"],
        expected=2,
    )
    assert "error: --out is missing; classes is a model on the hub, so give a folder for its scores" in said
    assert f"model.init_from: owner/bert at commit {hub.files('owner/bert', 'v1')[0]}" in said
    assert (tmp_path / "scores" / "evaluation.json").exists()
    assert not (tmp_path / "classes").exists()
    copied, v1 = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "copy", tmp_path / "hub/owner/bert@v1")
    )
    assert_equal(copied, v1)


TOGETHER = """
from train import hosts
from train.folders import run_folder
from train.sections import RunConfig
config = RunConfig(out="run")
config.model.init_from = "owner/bert"
hosts.connect()
find = run_folder.find_model
def find_and_move_on(*arguments):
    found = find(*arguments)
    if hosts.is_first():
        (Path(sys.argv[1]) / "README.md").write_text(found.commit)  # main moves on
    return found
run_folder.find_model = find_and_move_on
run_folder.init_folder(config)
print("commit", config.model.init_commit, flush=True)
"""


def test_all_processes_of_a_run_start_from_one_commit(hub, tmp_path):
    first, _ = hub.files("owner/bert", "main")
    (tmp_path / "run").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path / "hub" / "owner" / "bert"
    with ThreadPoolExecutor(2) as threads:
        said = threads.map(
            lambda index: run(
                hub,
                tmp_path,
                TOGETHER,
                folder,
                HF_HOME=str(tmp_path / f"cache{index}"),
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
            ),
            range(2),
        )
        commits = [line for text in said for line in text.splitlines() if line.startswith("commit")]
    assert commits == [f"commit {first}"] * 2
    assert hub.files("owner/bert", "main")[0] != first
