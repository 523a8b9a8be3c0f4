"""Extractive question answering: windows, labels, spans, and the official scores."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bertgpt.data.tasks import squad
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.squad import Answers, max_context, windows
from bertgpt.data.tasks.task import Example, TaskExamples
from bertgpt.data.tasks.templates import make_template
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer

# who is ? are 5 6 7; ant to hen are 8 to 15; then ##s, cafe, an accent that goes on a word, and Hangul's parts
WORDS = "who is ? ant bee cat dog elk fox gnu hen ##s cafe ##\u0301 \u1100 ##\u1161 \u4e2d \u56fd , ##e"
ANIMALS = "ant bee cat dog elk fox gnu hen"
UNITS = [
    *["ant", "Bees", "caf\xe9", "cafe\u0301", "\u4e2d\u56fd", "\U0001f600", "\U0001f468\u200d\U0001f469", "\u0130st"],
    *[
        "\xdf",
        "x\u0302\u0301",
        "\xc5ngstr\xf6m",
        "\u0915\u094d\u0937\u093f",
        "don't",
        "(elk)",
        "\uac00",
        "\u2764\ufe0f",
    ],
]


def make_tokenizer(folder, **settings):
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | settings))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("uncased"))


@pytest.fixture(scope="module")
def task(tokenizer):
    """(T, settings) -> the task; T = 10 leaves 5 pieces beside "who is"."""
    return lambda length=10, **settings: Answers(make_template(tokenizer, length, True), **settings)


def make_row(context: str = ANIMALS, answers="ant", question: str = "who is") -> Row:
    return Row("train.json row 3", {"question": question, "context": context, "answers": answers})


def labels(example: Example) -> list[tuple[int, int]]:
    return [(int(feature["start_positions"]), int(feature["end_positions"])) for feature in example.features]


def make_outputs(example: Example, length: int, *logits: tuple[list, list], other: float = 100.0) -> list[dict]:
    """For each window the starts and ends of its pieces; every other position has `other`."""
    outputs = []
    for window, pair in zip(example.decode_info, logits, strict=True):
        arrays = [np.full(length, other, np.float32) for _ in pair]
        for array, values in zip(arrays, pair, strict=True):
            array[window.begin : window.begin + len(window.offsets)] = values
        outputs.append(dict(zip(("start_logits", "end_logits"), arrays, strict=True)))
    return outputs


def listed(prediction: dict) -> list[str]:
    return [entry["answer"] for entry in prediction["n_best"]]


# Windows


@pytest.mark.parametrize(
    ("count", "length", "stride", "spans"),
    [
        (8, 5, 3, [(0, 5), (3, 8)]),
        (5, 5, 3, [(0, 5)]),
        (3, 5, 3, [(0, 3)]),
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (11, 4, 3, [(0, 4), (3, 7), (6, 10), (9, 11)]),
        (9, 4, 10, [(0, 4), (4, 8), (8, 9)]),
    ],
)
def test_windows(count, length, stride, spans):
    assert windows(count, length, stride) == spans


@pytest.mark.parametrize(
    ("spans", "best"),
    [
        ([(0, 5), (3, 8)], ["11110", "01111"]),
        ([(0, 4), (1, 5)], ["1110", "0011"]),  # piece 2 has one piece beside it in both: the first
        ([(0, 6), (4, 8)], ["111110", "0111"]),
        ([(0, 3), (0, 5)], ["000", "11111"]),  # the ends are alike but for the length
        ([(0, 7)], ["1111111"]),
    ],
)
def test_max_context(spans, best):
    assert ["".join(map(str, window.astype(int))) for window in max_context(spans)] == best


@hypothesis.given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 25))
def test_max_context_equals_a_loop_over_pieces_and_windows(count, length, stride):
    spans = windows(count, length, stride)
    flags = max_context(spans)
    for piece in range(count):
        scores = {
            index: min(piece - start, end - 1 - piece) + 0.01 * (end - start)
            for index, (start, end) in enumerate(spans)
            if start <= piece < end
        }
        best = max(scores, key=lambda index: (scores[index], -index))
        assert {index: bool(flags[index][piece - spans[index][0]]) for index in scores} == {
            index: index == best for index in scores
        }


def test_features_are_cls_question_sep_window_sep(task):
    first, second = task(stride=3).encode(make_row()).features
    assert first["input_ids"].tolist() == [2, 5, 6, 3, 8, 9, 10, 11, 12, 3]
    assert second["input_ids"].tolist() == [2, 5, 6, 3, 11, 12, 13, 14, 15, 3]
    assert first["token_type_ids"].tolist() == second["token_type_ids"].tolist() == [0] * 4 + [1] * 6
    assert first["attention_mask"].tolist() == [1] * 10


def test_the_shapes_and_dtypes_of_a_feature(task):
    example = task(length=20).encode(make_row())
    assert {name: (value.shape, value.dtype.name) for name, value in example.features[0].items()} == {
        "input_ids": ((13,), "int32"),
        "attention_mask": ((13,), "int32"),
        "token_type_ids": ((13,), "int32"),
        "start_positions": ((), "int32"),
        "end_positions": ((), "int32"),
        "loss_mask": ((), "float32"),
    }
    assert example.features[0]["loss_mask"] == 1
    assert not example.cut


def test_without_labels_no_answer_is_read(task):
    row = Row("line 1", {"question": "who is", "context": ANIMALS})
    for feature in task(stride=3).encode(row, labelled=False).features:
        assert set(feature) == {"input_ids", "attention_mask", "token_type_ids", "loss_mask"}
        assert feature["loss_mask"] == 1


def test_a_long_question_is_cut(task):
    example = task(max_question=1).encode(make_row("ant bee", question="who is ?"))
    assert example.features[0]["input_ids"].tolist() == [2, 5, 3, 8, 9, 3]
    assert labels(example) == [(3, 3)]
    assert example.cut


def test_features_are_padded_as_batches(task):
    answers = task(length=12, stride=2)
    batch = TaskExamples(answers, [answers.encode(make_row(answers="hen"))]).batch(np.arange(2))
    assert batch["input_ids"].tolist() == [
        [2, 5, 6, 3, 8, 9, 10, 11, 12, 13, 14, 3],
        [2, 5, 6, 3, 10, 11, 12, 13, 14, 15, 3, 0],
    ]
    assert batch["end_positions"].tolist() == [0, 9]


@hypothesis.given(st.lists(st.sampled_from(UNITS), min_size=1, max_size=60), st.integers(9, 30), st.integers(1, 30))
def test_every_piece_stands_in_a_window_and_in_one_with_max_context(tokenizer, words, length, stride):
    context = " ".join(["ant", *words])
    example = Answers(make_template(tokenizer, length, True), stride).encode(make_row(context), labelled=False)
    ids = tokenizer.encode(context, add_special_tokens=False).ids
    shown, best = np.zeros(len(ids), int), np.zeros(len(ids), int)
    for feature, (start, end), window in zip(
        example.features, windows(len(ids), length - 5, stride), example.decode_info, strict=True
    ):
        assert feature["input_ids"][window.begin : -1].tolist() == ids[start:end]
        shown[start:end] += 1
        best[start:end] += window.max_context
    assert (shown >= 1).all()
    assert (best == 1).all()


# Characters and labels


@pytest.mark.parametrize(
    ("context", "offsets"),
    [
        ("Caf\xe9 ants", [(0, 4), (5, 8), (8, 9)]),
        ("\u4e2d\u56fdant", [(0, 1), (1, 2), (2, 5)]),
        ("\U0001f600 ant", [(0, 1), (2, 5)]),
        ("cafe\u0301 ant", [(0, 5), (6, 9)]),  # the accent that stands alone belongs to the e
        ("ant, cafe\u0301\u0301", [(0, 3), (3, 4), (5, 11)]),
        ("\uac00 ant", [(0, 1), (0, 1), (2, 5)]),  # two pieces of one character
    ],
)
def test_offsets_are_characters_of_the_original_context(task, context, offsets):
    (window,) = task(length=20).encode(make_row(context), labelled=False).decode_info
    assert window.offsets.tolist() == [list(offset) for offset in offsets]


def test_an_accent_with_a_piece_of_its_own_stays_there(tmp_path):
    cased = make_tokenizer(tmp_path, do_lower_case=False)
    (window,) = Answers(make_template(cased, 20, True)).encode(make_row("cafe\u0301 ant"), labelled=False).decode_info
    assert window.offsets.tolist() == [[0, 4], [4, 5], [6, 9]]


@pytest.mark.parametrize(
    ("answer", "positions"),
    [
        ("cat", [(6, 6), (0, 0)]),
        ("cat dog elk", [(6, 8), (0, 0)]),
        ("dog elk", [(7, 8), (4, 5)]),
        ("elk fox", [(0, 0), (5, 6)]),  # the first window ends within
        ("cat dog elk fox", [(0, 0), (0, 0)]),
        ("hen", [(0, 0), (8, 8)]),
        ("at do", [(6, 7), (0, 0)]),  # the pieces that it touches
        (" dog ", [(7, 7), (4, 4)]),
    ],
)
def test_labels_are_positions_in_the_windows_input(task, answer, positions):
    assert labels(task(stride=3).encode(make_row(answers=answer))) == positions


@pytest.mark.parametrize(("answer", "positions"), [("bee", (4, 4)), ("ees", (4, 5)), ("s", (5, 5))])
def test_an_answer_within_a_word_has_the_pieces_it_touches(task, answer, positions):
    assert labels(task().encode(make_row("bees ant", answer))) == [positions]


@pytest.mark.parametrize(
    ("answers", "positions"),
    [
        ({"text": ["bee", "ant"], "answer_start": [12, 0]}, (7, 7)),
        ([{"text": "bee", "answer_start": 12}, {"text": "ant", "answer_start": 0}], (7, 7)),
        ({"text": ["bee", "ant"]}, (5, 5)),
        ({"text": ["bee"], "answer_start": [4]}, (5, 5)),
        ([{"text": "bee"}], (5, 5)),
        ("bee", (5, 5)),
        ({"text": [" ", "ant"], "answer_start": [3, 0]}, (4, 4)),
    ],
)
def test_the_first_answer_is_the_label_in_every_form(task, answers, positions):
    assert labels(task(length=20).encode(make_row("ant bee cat bee", answers))) == [positions]


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}, "", "  ", {"text": [""]}, None])
def test_no_answer(task, answers):
    row = make_row(answers=answers)
    assert labels(task(stride=3, null_threshold=0.0).encode(row)) == [(0, 0), (0, 0)]
    assert task().gold(row) == []
    with pytest.raises(InputError, match="^train.json row 3: it has no answer; set task.null_threshold for SQuAD 2.0"):
        task().encode(row)


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ({"text": ["bee", "", "ant"], "answer_start": [4, 0, 0]}, ["bee", "ant"]),
        ([{"text": "bee", "answer_start": 4}, {"text": "not there", "answer_start": 90}], ["bee", "not there"]),
        ("bee", ["bee"]),
    ],
)
def test_gold_are_all_texts(task, answers, texts):
    assert task().gold(make_row(answers=answers)) == texts


def test_columns_have_the_names_of_the_settings(task):
    answers = task(question_column="q", context_column="c", answers_column="a")
    row = Row("line 1", {"q": "who is", "c": "ant bee", "a": "bee"})
    example = answers.encode(row)
    assert labels(example) == [(5, 5)]
    assert answers.gold(row) == ["bee"]
    assert answers.decode(example, make_outputs(example, 10, ([0, 1], [0, 1])))["answer"] == "bee"


# Errors


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row(answers="owl"), "the answer 'owl' is not in the context; correct it or remove the row"),
        (make_row(answers={"text": ["bee"], "answer_start": [5]}), "'bee' is not at character 5 of the context; corr"),
        (make_row(answers={"text": ["hen"], "answer_start": [-3]}), "'hen' is not at character -3 of the context"),
        (make_row(answers={"text": ["owl"], "answer_start": [4]}), "'owl' is not at character 4 of the context"),
        (make_row("ant \u200b bee", "\u200b"), r"the answer '\\u200b' has no tokens; correct it or remove the row"),
        (make_row(answers=5), "column 'answers' is 5, not answers; give {"),
        (make_row(answers=["ant"]), "not answers; give"),
        (make_row(answers={"text": "ant", "answer_start": 0}), "not answers; give"),
        (make_row(answers={"answer_start": [1]}), "not answers; give"),
        (make_row(answers={"text": ["ant", "bee"], "answer_start": [0]}), "not answers; give"),
        (make_row(answers={"text": ["ant"], "answer_start": 0}), "not answers; give"),
        (make_row(answers=[{"text": "ant", "answer_start": "0"}]), "not answers; give"),
        (make_row(answers=[{"text": "ant", "answer_start": True}]), "not answers; give"),
        (make_row(answers={"text": [3]}), "not answers; give"),
        (make_row(question="[CLS]"), "'\\[CLS\\]' has no tokens except special ones; give a text"),
        (make_row(context="[SEP] [SEP]"), "has no tokens except special ones; give a text"),
        (make_row(question=" "), "column 'question' is an empty text"),
        (Row("train.json row 3", {"question": "who"}), "column 'context' is missing .*; set task.context to another"),
        (Row("train.json row 3", {"context": "ant"}), "column 'question' is missing .*; set task.question to another"),
        (
            Row("train.json row 3", {"question": "who", "context": "ant"}),
            "column 'answers' is missing .*; set task.answers to another",
        ),
        (
            make_row(question="who is who is who is who"),
            "7 pieces of the question leave no room for the context in 10 tokens; lower task.max_question or raise "
            "data.sequence_length",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(task, row, message):
    with pytest.raises(InputError, match=f"^train.json row 3: .*{message}"):
        task().encode(row)


@pytest.mark.parametrize("name", ["stride", "max_question", "n_best", "max_answer"])
def test_settings_are_at_least_one(task, name):
    with pytest.raises(InputError, match=f"^task.{name} is 0; it must be at least 1"):
        task(**{name: 0})
    task(**{name: 1})


# Spans of logits


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        ({}, ["ant bee", "ant bee cat", "ant", "bee", "bee cat", "cat"]),
        ({"n_best": 3}, ["ant bee", "ant bee cat", "ant"]),
        ({"n_best": 2}, ["ant bee", "ant bee cat"]),
        ({"n_best": 1}, ["ant bee"]),
        ({"max_answer": 2}, ["ant bee", "ant", "bee", "bee cat", "cat"]),
        ({"max_answer": 1}, ["ant", "bee", "cat"]),
    ],
)
def test_spans_are_listed_from_the_best(task, settings, answers):
    extractor = task(length=12, **settings)
    example = extractor.encode(make_row("ant bee cat"))
    prediction = extractor.decode(example, make_outputs(example, 12, ([3, 1, 0], [0, 2, 1])))
    assert listed(prediction) == answers
    assert prediction["answer"] == answers[0]
    assert "null_score_difference" not in prediction


def test_only_the_best_starts_and_ends_are_combined(task):
    extractor = task(n_best=2)
    example = extractor.encode(make_row("ant bee cat"))
    prediction = extractor.decode(example, make_outputs(example, 10, ([0, 1, 2], [5, 4, 0])))
    assert listed(prediction) == ["bee"]  # cat begins, ant ends; ant ant is better but no start of the best two


def test_a_prediction_is_json_with_characters_and_probabilities(task):
    extractor = task(n_best=2)
    example = extractor.encode(make_row("ant  bee cat"))
    prediction = extractor.decode(example, make_outputs(example, 10, ([3, 1, 0], [0, 2, 1])))
    entries = [("ant  bee", 0, 8, 0.7310586), ("ant  bee cat", 0, 12, 0.2689414)]  # scores 5 and 4
    assert json.loads(json.dumps(prediction)) == prediction
    assert prediction["n_best"] == [
        {"answer": answer, "start": start, "end": end, "probability": pytest.approx(probability)}
        for answer, start, end, probability in entries
    ]
    assert {key: value for key, value in prediction.items() if key != "n_best"} == prediction["n_best"][0]


def test_large_logits_do_not_overflow(task):
    example = task().encode(make_row("ant bee"))
    prediction = task().decode(example, make_outputs(example, 10, ([9000, 0], [9000, 0])))
    assert prediction["probability"] == 1.0


def test_pieces_of_one_character_give_one_span(task):
    example = task().encode(make_row("\uac00 ant", "\uac00"))
    assert labels(example) == [(4, 5)]
    prediction = task().decode(example, make_outputs(example, 10, ([3, 1, -50], [0, 2, -50])))
    assert listed(prediction) == ["\uac00", "\uac00 ant", "ant"]
    assert prediction["probability"] == pytest.approx(1)


def test_a_span_begins_where_its_piece_has_max_context(task):
    example = task(stride=3).encode(make_row())
    start = [[0, 0, 0, 0, 9], [5, 0, 0, 0, 0]]  # elk in the first window, dog in the second: both at the edge
    end = [[0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]  # an end may stand at the edge
    prediction = task(stride=3).decode(example, make_outputs(example, 10, *zip(start, end, strict=True)))
    assert prediction["n_best"][0]["answer"] == "ant bee cat dog elk"
    assert {entry["start"] for entry in prediction["n_best"][:4]} == {0, 4, 8, 12}  # ant, bee, cat, dog


def test_spans_are_pooled_over_windows(task):
    example = task(stride=3).encode(make_row())
    outputs = make_outputs(example, 10, ([0, 2, 0, 0, 0], [0, 2, 0, 0, 0]), ([0, 0, 0, 3, 0], [0, 0, 0, 3, 0]))
    prediction = task(stride=3).decode(example, outputs)
    assert listed(prediction)[0] == "gnu"
    assert "bee" in listed(prediction)
    assert prediction["start"] == ANIMALS.index("gnu")


def test_no_span_is_allowed(task):
    example = task().encode(make_row("ant bee"))
    outputs = make_outputs(example, 10, ([0, 1], [1, 0]))
    nothing = {"answer": "", "start": None, "end": None, "probability": 1.0}
    assert task(n_best=1).decode(example, outputs) == nothing | {"n_best": [nothing]}
    assert task(n_best=1, null_threshold=0.0).decode(example, outputs) == nothing | {
        "n_best": [nothing],
        "null_score_difference": None,
    }


def null_outputs(example: Example) -> list[dict]:
    """Null scores 7 and 4 of two windows, and the best span 5."""
    outputs = make_outputs(example, 10, ([2, 0, 0, 0, 0], [3, 0, 0, 0, 0]), ([0] * 5, [0] * 5), other=50.0)
    for output, (start, end) in zip(outputs, [(3, 4), (6, -2)], strict=True):
        output["start_logits"][0], output["end_logits"][0] = start, end
    return outputs


@pytest.mark.parametrize(
    ("threshold", "answer", "start", "end"), [(-1.0, "ant", 0, 3), (5.0, "ant", 0, 3), (-1.01, "", None, None)]
)
def test_null_wins_where_it_beats_the_best_span_by_more_than_the_threshold(task, threshold, answer, start, end):
    extractor = task(stride=3, null_threshold=threshold, n_best=2)
    example = extractor.encode(make_row())
    prediction = extractor.decode(example, null_outputs(example))
    assert (prediction["answer"], prediction["start"], prediction["end"]) == (answer, start, end)
    assert prediction["null_score_difference"] == -1.0
    assert listed(prediction) == ["ant", "", "ant bee"]  # of scores 5, 4 and 2
    scores = np.exp([5, 4, 2])
    np.testing.assert_allclose([entry["probability"] for entry in prediction["n_best"]], scores / scores.sum())
    assert prediction["probability"] == prediction["n_best"][listed(prediction).index(answer)]["probability"]
    json.dumps(prediction, allow_nan=False)


def test_without_a_threshold_null_is_no_answer(task):
    example = task(stride=3).encode(make_row())
    assert "" not in listed(task(stride=3).decode(example, null_outputs(example)))


@hypothesis.given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_spans_equal_loops_over_windows_starts_and_ends(tokenizer, count, stride, n_best, max_answer, seed):
    rng = np.random.default_rng(seed)
    extractor = Answers(make_template(tokenizer, 15, True), stride, n_best=n_best, max_answer=max_answer)
    example = extractor.encode(make_row(" ".join(rng.choice(ANIMALS.split(), count))), labelled=False)
    outputs = [{name: rng.normal(size=15) for name in ("start_logits", "end_logits")} for _ in example.features]
    found = []
    for window, output in zip(example.decode_info, outputs, strict=True):
        starts, ends = (logits[4 : 4 + len(window.offsets)] for logits in output.values())
        for first in sorted(range(len(starts)), key=lambda piece: -starts[piece])[:n_best]:
            for last in sorted(range(len(ends)), key=lambda piece: -ends[piece])[:n_best]:
                if window.max_context[first] and first <= last < first + max_answer:
                    place = (int(window.offsets[first][0]), int(window.offsets[last][1]))
                    found.append((starts[first] + ends[last], place))
    wanted = [place for _, place in sorted(found, reverse=True)][:n_best] or [(None, None)]
    prediction = extractor.decode(example, outputs)
    assert [(entry["start"], entry["end"]) for entry in prediction["n_best"]] == wanted


@hypothesis.given(st.lists(st.sampled_from(UNITS), min_size=1, max_size=60), st.data())
def test_logits_at_the_labels_give_back_the_answer(tokenizer, words, data):
    words = [*words, "hen"]  # a context of unknown words alone is refused
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    gold, place = " ".join(words[first : last + 1]), len("".join(f"{word} " for word in words[:first]))
    row = make_row(" ".join(words), {"text": [gold], "answer_start": [place]})
    extractor = Answers(make_template(tokenizer, 37, True), stride=8)  # windows of 32 pieces
    example = extractor.encode(row)
    outputs = []
    for positions in labels(example):
        arrays = [np.where(np.arange(37) == position, 9.0, 0.0).astype(np.float32) for position in positions]
        outputs.append({"start_logits": arrays[0], "end_logits": arrays[1]})
    prediction = extractor.decode(example, outputs)
    assert (prediction["answer"], prediction["start"], prediction["end"]) == (gold, place, place + len(gold))
    assert squad.exact_match(prediction["answer"], extractor.gold(row)) == 1


# Scores


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\ta dog's!", "cat dogs"),
        ("10 a.m.", "10 am"),
        ("an-anthem of theatre", "ananthem of theatre"),  # punctuation goes first, and leaves no space
        ("A an THE", ""),
        ("\xabThe\xbb caf\xe9", "\xab \xbb caf\xe9"),  # ASCII's punctuation alone
        ("$1,000", "1000"),
        ("banana", "banana"),
    ],
)
def test_normalize_answer(text, normal):
    assert squad.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("the cat sat", ["cat"], 0, 2 / 3),
        ("cat cat", ["cat dog"], 0, 1 / 2),  # a word counts as often as both have it
        ("cat cat", ["cat cat dog"], 0, 4 / 5),
        ("dog ran", ["cat", "dog sat down", "dog"], 0, 2 / 3),
        ("dog", ["cat", "the dog"], 1, 1),
        ("cat", ["dog"], 0, 0),
        ("", [""], 1, 1),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
    ],
)
def test_exact_match_and_f1(prediction, answers, exact, overlap):
    assert squad.exact_match(prediction, answers) == exact
    assert squad.f1(prediction, answers) == pytest.approx(overlap)


def test_scores_of_version_1():
    scores = squad.squad_scores(["The cat!", "a dog ran", "the"], [["cat"], ["dog", "dog sat down"], ["a"]])
    # Its script gives the last an exact match and no F1.
    assert scores == pytest.approx({"exact_match": 200 / 3, "f1": (100 + 200 / 3 + 0) / 3})


def test_scores_of_version_2():
    predictions = ["cat sat", "", "dog", "bee", "a"]
    answers = [["cat"], [], [], ["the bee", "ant"], ["the", "ant"]]  # "the" does not count
    assert squad.squad_scores(predictions, answers) == pytest.approx(
        {
            "exact_match": 40,
            "f1": (200 / 3 + 100 + 0 + 100 + 0) / 5,
            "has_answer_exact_match": 100 / 3,
            "has_answer_f1": (200 / 3 + 100 + 0) / 3,
            "no_answer_exact_match": 50,
        }
    )


def test_scores_where_no_question_has_an_answer():
    assert squad.squad_scores(["", "cat"], [[], []]) == {"exact_match": 50, "f1": 50, "no_answer_exact_match": 50}


def test_nothing_to_score_is_refused():
    with pytest.raises(InputError, match="no predictions to score"):
        squad.squad_scores([], [])
