"""What pretraining checks before it begins, and the baselines of its held-out figures."""

import numpy as np
import pytest

import bertgpt
from bertgpt.data.pretraining.pair_plans import Pairs, to_records
from bertgpt.data.pretraining.sentence_pairs import BertPairs, LengthBaseline, fit_lengths
from bertgpt.data.pretraining.windows import GptWindows
from bertgpt.data.text.store import Split
from train import job, loop, optimizers
from train.__main__ import main
from train.jobs.pretraining import baseline_sums, check_labels
from train.reports import derived
from train.sections import RunConfig

BLANK_LINES = "separate documents, not sentences, by blank lines"


def make_split(documents: list[int], tokens: int = 4) -> Split:
    """Documents given as their numbers of sentences, all of so many tokens."""
    ends = np.cumsum([0, *documents])
    text = np.arange(5, 5 + tokens * ends[-1], dtype=np.uint32) % 100
    return Split(text, np.arange(0, len(text) + 1, tokens), ends, np.zeros(200, np.int64), len(text))


def check(tokenizer, split: Split, balanced: bool = True, length: int = 32, **data) -> None:
    config = RunConfig()
    config.data.sequence_length = length
    for name, value in data.items():
        setattr(config.data, name, value)
    check_labels(BertPairs(split, tokenizer, length, 0, balanced=balanced), "eval", config)


@pytest.mark.parametrize("balanced", [True, False])
def test_documents_of_one_sentence_are_refused(wordpiece, balanced):
    message = f"^the eval split: none of its 20 sentence pairs is IsNext: 100% of its 20 documents.*{BLANK_LINES}"
    with pytest.raises(bertgpt.InputError, match=message):
        check(wordpiece, make_split([1] * 20), balanced)


def test_with_a_sentence_a_line_the_hint_is_another(wordpiece):
    with pytest.raises(bertgpt.InputError, match="each sentence on its own line, and blank lines only between doc"):
        check(wordpiece, make_split([1] * 20), sentence_per_line=True)


def test_with_a_document_a_line_the_hint_is_another(wordpiece):
    with pytest.raises(bertgpt.InputError, match=r"set data\.document to paragraph or file$"):
        check(wordpiece, make_split([1] * 20), document="line")


def test_sentences_as_long_as_a_pair_are_refused_with_what_helps(wordpiece):
    with pytest.raises(bertgpt.InputError, match=r"0% of its 9 documents have one sentence; raise data\.sequence_len"):
        check(wordpiece, make_split([3] * 9, tokens=40))


def test_few_chunks_of_several_sentences_are_told(wordpiece, capsys):
    check(wordpiece, make_split([1] * 50 + [2] * 10))
    line = capsys.readouterr().err
    assert line.startswith("warning: the eval split: 83% of its sentence pairs are NotNext, and 40 of 60 are skipped")
    assert "83% of its 60 documents have one sentence" in line
    check(wordpiece, make_split([1] * 50 + [2] * 10), balanced=False)
    line = capsys.readouterr().err
    assert "of its sentence pairs are NotNext: 83% of its 60 documents" in line


@pytest.mark.parametrize("balanced", [True, False])
def test_usual_documents_are_not_told(wordpiece, capsys, balanced):
    check(wordpiece, make_split([1, 2, 3, 4] * 20), balanced)
    assert capsys.readouterr().err == ""


def test_a_blank_line_after_every_sentence_ends_in_one_line_before_training(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(f"My dog number {n} is cute.\n\n" for n in range(60)))
    (tmp_path / "run.yaml").write_text("model: {preset: bert_tiny}\ntokenizer: {vocab_size: 60}\n")
    data = [f"data.train={tmp_path / 'text.txt'}", "data.eval_fraction=0.2", "data.workers=1", "train.steps=1"]
    assert main(["pretrain", str(tmp_path / "run.yaml"), *data, f"out={tmp_path / 'out'}"]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: the train split: none of its ")
    assert BLANK_LINES in line
    assert output.out.count("documents (100% of one sentence)") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]  # usable once the text is mended


def test_baselines_count_held_out_pairs_under_their_masks():
    baseline = LengthBaseline(np.arange(6), np.zeros(6, int), np.array([[0], [0], [1], [0], [0], [0]]))
    batch = {
        "labels": np.array([[1, 0], [0, 0], [1, 1], [1, 0]]),
        "loss_mask": np.array([[1.0, 0], [1, 0], [1, 1], [0, 0]]),
        "token_type_ids": np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]),
        "attention_mask": np.array([[1] * 5 + [0]] * 2 + [[1] * 6] * 2),
        "next_sentence_label": np.array([0, 1, 1, 0]),
        "nsp_loss_mask": np.array([1.0, 1, 1, 0]),
    }
    sums = baseline_sums(batch, np.log([0.25, 0.75]), baseline)
    assert sums.pop("unigram_cross_entropy") == pytest.approx((-np.log(0.25) - 3 * np.log(0.75), 4.0))
    assert sums == {"nsp_length_recall_is_next": (1.0, 1.0), "nsp_length_recall_not_next": (1.0, 2.0)}
    assert list(baseline_sums(batch, np.log([0.25, 0.75]), None)) == ["unigram_cross_entropy"]


@pytest.mark.parametrize(
    ("rows", "accuracy"),
    [
        ([(2, 1, 0), (1, 2, 1), (2, 2, 1), (1, 1, 0)], 1.0),
        ([(2, 1, 0), (2, 1, 1), (1, 2, 0), (1, 2, 1)], 0.5),
    ],
)
def test_the_baseline_is_1_where_lengths_decide_and_a_half_where_they_do_not(rows, accuracy):
    a_length, b_length, label = (np.tile(values, 50) for values in np.array(rows).T)
    plan = to_records(Pairs(label * 0, a_length, label * 0, b_length, label))
    position, a_end = np.arange(7), a_length[:, None] + 1
    batch = {
        "labels": np.zeros((200, 1), int),
        "loss_mask": np.ones((200, 1)),
        "token_type_ids": (position > a_end) & (position <= a_end + b_length[:, None] + 1),
        "attention_mask": position <= a_end + b_length[:, None] + 1,
        "next_sentence_label": label,
        "nsp_loss_mask": np.ones(200),
    }
    sums = baseline_sums(batch, np.zeros(1), fit_lengths([plan], 4))
    figures = derived({name: total / weight for name, (total, weight) in sums.items()}, 1.0)
    assert figures["nsp_length_baseline"] == accuracy


def make_job(source, examples: int, token_keys=("input_ids", "labels")) -> job.TrainJob:
    names = ("model", "tokenizer", "params", "objective", "train_source", "digest", "host_sums")
    unused = dict.fromkeys(names)
    held_out = {"": job.EvalSet(source, examples, None)}
    return job.TrainJob(**unused, evals=held_out, eval_seed=1, token_keys=token_keys)


def warned(capsys, job: job.TrainJob, **train) -> str:
    config = RunConfig()
    config.train.batch_size = 8
    for name, value in train.items():
        setattr(config.train, name, value)
    loop.warn_of_settings(config, job)
    return capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "few"), [(1000, True), (1001, False)])  # the first is predicted by nothing
def test_an_evaluation_of_few_next_tokens_is_told(tokens, few, capsys):
    job = make_job(GptWindows(make_split([1] * tokens, tokens=1), 32, 0), 32)
    assert ("scores only 999 predicted tokens" in warned(capsys, job)) == few


def test_masked_tokens_are_counted_over_all_that_an_evaluation_scores(wordpiece, capsys):
    pairs = BertPairs(make_split([3] * 40), wordpiece, 15, 0)  # 12 tokens at most in a pair: 1 or 2 are masked
    line = warned(capsys, make_job(pairs, 30), eval_examples=30)
    rows = sum(int(batch["loss_mask"].sum()) for batch in loop.loader.eval_batches(pairs, 8, 1, 30))
    assert 30 <= rows <= 60
    assert line.startswith(f"warning: an evaluation scores only {rows} predicted tokens, too few")
    assert "raise train.eval_examples, or hold out more text" in line
    assert warned(capsys, make_job(pairs, 1000), eval_examples=1000) == ""  # pairs are drawn anew
    assert warned(capsys, make_job(pairs, 30, ("input_ids",)), eval_examples=30) == ""  # classes, not tokens


@pytest.mark.parametrize("section", [{"warmup_steps": 4}, {"warmup_steps": 5}, {"warmup_fraction": 0.9}, {}])
@pytest.mark.parametrize("steps", [2, 4, 5, 6, 40])
def test_a_warm_up_that_the_run_never_leaves_is_told(section, steps, capsys):
    config = RunConfig()
    config.train.steps, config.optimizer.schedule = steps, "constant"
    for name, value in section.items():
        setattr(config.optimizer, name, value)
    loop.warn_of_settings(config, make_job(None, 0, ()))
    rates = [float(optimizers.make_schedule(config.optimizer, steps)(count)) for count in range(steps)]
    reached = max(rates) == pytest.approx(config.optimizer.learning_rate)
    assert ("learning rate never reaches 0.0001" in capsys.readouterr().err) != reached
