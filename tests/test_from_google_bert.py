"""docs/from_google_bert.md: its commands and code run, and it names every flag of Google's five scripts."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from train.__main__ import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "from_google_bert.md").read_text(encoding="utf-8")
GOOGLE = ROOT / "tests" / "goldens" / "google"
RELEASE = "uncased_L-12_H-768_A-12"
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "it", "was", "fine"]
SHORT = ["data.sequence_length=16", "train.steps=1", "parallel.strategy=jit"]
PREPARED = ["data.eval_fraction=0.2", "data.workers=1", "data.sequence_length=16"]
EXTRA = {
    "prepare": PREPARED,
    "pretrain": [*PREPARED, *SHORT, "train.batch_size=8", "train.eval_examples=8"],
    "finetune": [*SHORT, "train.epochs=null", "train.batch_size=4"],
}
FLAGS = (
    *("input_file", "output_file", "vocab_file", "do_lower_case", "do_whole_word_mask", "max_seq_length"),
    *("max_predictions_per_seq", "random_seed", "dupe_factor", "masked_lm_prob", "short_seq_prob"),
    *("bert_config_file", "output_dir", "init_checkpoint", "do_train", "do_eval", "train_batch_size"),
    *("eval_batch_size", "learning_rate", "num_train_steps", "num_warmup_steps", "save_checkpoints_steps"),
    *("iterations_per_loop", "max_eval_steps", "use_tpu", "tpu_name", "tpu_zone", "gcp_project", "master"),
    *("num_tpu_cores", "data_dir", "task_name", "do_predict", "predict_batch_size", "num_train_epochs"),
    *("warmup_proportion", "train_file", "predict_file", "doc_stride", "max_query_length", "n_best_size"),
    *("max_answer_length", "verbose_logging", "version_2_with_negative", "null_score_diff_threshold", "layers"),
    *("batch_size", "use_one_hot_embeddings", "preserve_unused_tokens"),
)


def squad(count):
    """SQuAD's JSON of as many paragraphs."""
    paragraphs = []
    for number in range(count):
        context = f"the cat sat on the mat {number} ."
        answers = [{"text": "the mat", "answer_start": context.index("the mat")}]
        paragraphs.append({"context": context, "qas": [{"id": str(number), "question": "on it", "answers": answers}]})
    return json.dumps({"version": "1.1", "data": [{"title": "a", "paragraphs": paragraphs}]})


def mrpc(count, label):
    """MRPC's columns."""
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    lines += [f"{number % 2}\t1\t2\tthe cat {label} {number}\tit was fine {number}" for number in range(count)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The files that the page names, in the folder where its commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, golden in ((RELEASE, "pretraining"), ("mrpc_output", "classifier"), ("squad_output", "squad")):
        shutil.copytree(GOOGLE / golden, tmp_path / name)
    sentences = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))]
    documents = ["\n".join(f"{sentence} {number}" for sentence in sentences) for number in range(20)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents) + "\n")
    (tmp_path / "MRPC").mkdir()
    for name, count in (("train", 8), ("dev", 4), ("test", 4)):
        (tmp_path / "MRPC" / f"{name}.tsv").write_text(mrpc(count, name))
    (tmp_path / "train-v1.1.json").write_text(squad(4))
    (tmp_path / "dev-v1.1.json").write_text(squad(2).replace("the cat sat", "the dog sat"))


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
@pytest.mark.filterwarnings("ignore:.*does not use")
def test_the_pages_commands_run(home, capsys):
    """In order and as printed, but with models of a few numbers and a step."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 12
    for line in lines:
        program, *arguments = shlex.split(line)
        assert (program, *arguments[:2]) == (".venv/bin/python", "-m", "train")
        extra = list(EXTRA.get(arguments[2], []))
        extra += ["task.max_question=4", "task.stride=4"] if "squad1" in line else []
        assert main([*arguments[2:], *extra]) == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
@pytest.mark.filterwarnings("ignore:.*does not use")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_pages_python_runs(home, code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "from_google_bert.md", "exec"), {})
    assert "[CLS] [(8,), (8,), (8,)]" in printed.getvalue() or "print" not in code


@pytest.mark.parametrize("flag", FLAGS)
def test_the_page_names_googles_flag(flag):
    assert re.search(rf"`--{flag}\b", PAGE)
