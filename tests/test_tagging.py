"""A tag for every word: pieces, windows, labels, predictions and entities."""

import itertools
import json
import re
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import normalizers

from bertgpt.data.tasks import tagging
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.tagging import Tagging
from bertgpt.data.tasks.task import TaskExamples
from bertgpt.data.tasks.templates import make_template
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer

PIECES = "jim hen ##son was a puppet ##eer in new york cafe naive x ##x ##s 中 文 😀 . '"
LABELS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
HENSON = ["Jim", "Henson", "was", "a", "puppeteer"]
TAGS = ["B-PER", "I-PER", "O", "O", "O"]
POSITIONS = [1, 2, 4, 5, 6]  # of the first pieces: [CLS] jim hen ##son was a puppet ##eer [SEP]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES.split()]), encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def make_task(tiny):
    def make(length: int = 32, labels: tuple[str, ...] = LABELS, **options) -> Tagging:
        return Tagging(make_template(tiny, length, bert=True), labels, **options)

    return make


def make_row(words, tags=None, **columns) -> Row:
    return Row("train.jsonl line 3", {"words": words} | ({} if tags is None else {"tags": tags}) | columns)


def names(task: Tagging, feature: dict) -> str:
    return " ".join(map(task.template.tokenizer.id_to_token, feature["input_ids"]))


def read_in(example) -> list[list[tuple[int, int]]]:
    """For each window the (word, position) pairs that are read there."""
    return [list(zip(reads.words.tolist(), reads.positions.tolist(), strict=True)) for reads in example.decode_info]


def spans_of(example) -> list[tuple[int, int]]:
    """Start and end of each word."""
    found = {
        word: tuple(span)
        for reads in example.decode_info
        for word, span in zip(reads.words.tolist(), reads.spans.tolist(), strict=True)
    }
    return [found[word] for word in range(len(found))]


def pointing(task: Tagging, example, tags: list[str], noise: int = 0) -> list[dict[str, np.ndarray]]:
    """Outputs, padded as the model's are, that favour the tags where words are read and random labels elsewhere."""
    rng = np.random.default_rng(noise)
    outputs = []
    for pairs in read_in(example):
        logits = rng.normal(size=(task.template.length, len(task.labels))).astype(np.float32)
        for word, position in pairs:
            logits[position, task.labels.index(tags[word])] = 9
        outputs.append({"logits": logits})
    return outputs


def refused(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("train.jsonl line 3: ")
    return message


def test_the_label_of_a_word_stands_at_its_first_piece(make_task):
    example = make_task().encode(make_row(HENSON, TAGS))
    (feature,) = example.features
    assert names(make_task(), feature) == "[CLS] jim hen ##son was a puppet ##eer [SEP]"
    assert feature["labels"].tolist() == [0, 2, 4, 0, 0, 0, 0, 0, 0]
    assert feature["loss_mask"].tolist() == [0, 1, 1, 0, 1, 1, 1, 0, 0]
    assert feature["attention_mask"].tolist() == [1] * 9
    assert feature["token_type_ids"].tolist() == [0] * 9
    assert not example.cut


def test_the_shapes_and_dtypes_of_features_and_batches(make_task):
    task = make_task()
    example = task.encode(make_row(HENSON, TAGS))
    dtypes = {"input_ids": "int32", "attention_mask": "int32", "token_type_ids": "int32"}
    dtypes |= {"loss_mask": "float32", "labels": "int32"}
    assert set(task.per_token) == set(dtypes)
    assert {name: (value.shape, value.dtype.name) for name, value in example.features[0].items()} == {
        name: ((9,), dtype) for name, dtype in dtypes.items()
    }
    batch = TaskExamples(task, [example, example]).batch(np.arange(2))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        name: ((2, 32), dtype) for name, dtype in dtypes.items()
    }


def test_the_note_says_where_words_stand_and_are_read(make_task):
    example = make_task().encode(make_row(HENSON, TAGS))
    assert spans_of(example) == [(0, 3), (4, 10), (11, 14), (15, 16), (17, 26)]
    assert read_in(example) == [list(enumerate(POSITIONS))]


def test_without_labels_the_places_to_read_are_marked_all_the_same(make_task):
    feature = make_task().encode(make_row(HENSON), labelled=False).features[0]
    assert "labels" not in feature
    assert feature["loss_mask"].tolist() == [0, 1, 1, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("words", [HENSON, "Jim Henson  was a\tpuppeteer"])
@pytest.mark.parametrize("tags", [TAGS, "B-PER I-PER  O O\tO"])
def test_words_and_tags_are_lists_or_parted_by_white_space(make_task, words, tags):
    example = make_task().encode(make_row(words, tags))
    assert example.features[0]["labels"].tolist() == [0, 2, 4, 0, 0, 0, 0, 0, 0]
    text = words if isinstance(words, str) else " ".join(words)
    assert [text[start:end] for start, end in spans_of(example)] == HENSON


def test_labelled_words_of_a_string_are_parted_by_white_space_alone(make_task):
    example = make_task().encode(make_row("York. x", "B-LOC O"))
    assert spans_of(example) == [(0, 5), (6, 7)]


def test_columns_have_the_names_that_are_set(make_task):
    task = make_task(words_column="tokens", tags_column="ner")
    row = Row("a line", {"tokens": ["York"], "ner": ["B-LOC"]})
    assert task.encode(row).features[0]["labels"].tolist() == [0, 1, 0]
    assert task.gold(row) == ["B-LOC"]


@pytest.mark.parametrize("nothing", ["", " ", "\u200b", "\u0301"])
def test_a_word_without_pieces_is_read_as_unknown(make_task, nothing):
    example = make_task().encode(make_row(["Jim", nothing, "York"], ["O", "B-PER", "O"]))
    assert names(make_task(), example.features[0]) == "[CLS] jim [UNK] york [SEP]"
    assert example.features[0]["labels"].tolist() == [0, 0, 2, 0, 0]
    assert spans_of(example) == [(0, 3), (4, 4 + len(nothing)), (5 + len(nothing), 9 + len(nothing))]


def test_a_word_longer_than_a_window_keeps_its_first_pieces(make_task):
    task = make_task(length=6)
    example = task.encode(make_row(["a", "x" * 9, "Jim"], ["O", "B-PER", "O"]))
    assert [names(task, feature) for feature in example.features] == [
        "[CLS] a [SEP]",
        "[CLS] x ##x ##x ##x [SEP]",
        "[CLS] jim [SEP]",
    ]
    assert example.features[1]["labels"].tolist() == [0, 2, 0, 0, 0, 0]
    assert example.cut


def test_a_long_sentence_is_read_in_windows_each_word_where_it_has_most_context(make_task):
    task = make_task(length=8, stride=3)
    row = make_row("Jim Henson was a puppeteer in New York", "B-PER I-PER O O O O B-LOC I-LOC")
    example = task.encode(row)
    assert [names(task, feature) for feature in example.features] == [
        "[CLS] jim hen ##son was a [SEP]",
        "[CLS] was a puppet ##eer in new [SEP]",
        "[CLS] in new york [SEP]",
    ]
    assert [feature["loss_mask"].tolist() for feature in example.features] == [
        [0, 1, 1, 0, 1, 0, 0],
        [0, 0, 1, 1, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
    ]
    assert [feature["labels"].tolist() for feature in example.features] == [
        [0, 2, 4, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 3, 0],
    ]
    assert read_in(example) == [[(0, 1), (1, 2), (2, 4)], [(3, 2), (4, 3), (5, 5)], [(6, 2), (7, 3)]]
    assert not example.cut


@pytest.mark.parametrize(
    ("stride", "windows"),
    [
        (0, [(0, 6), (6, 12), (12, 14)]),
        (2, [(0, 6), (4, 10), (8, 14)]),
        (32, [(0, 6), (3, 9), (6, 12), (9, 14)]),  # half a window at most
    ],
)
def test_windows_share_pieces_as_stride_says(stride, windows):
    assert tagging.cut_windows([1] * 14, 6, stride) == windows


def test_windows_share_fewer_pieces_before_a_long_word():
    assert tagging.cut_windows([1, 1, 1, 1, 5, 1], 6, 3) == [(0, 4), (3, 5), (5, 6)]


def test_a_sentence_that_just_fits_is_one_window():
    assert tagging.cut_windows([2, 3, 1], 6, 2) == [(0, 3)]
    assert tagging.cut_windows([2, 3, 2], 6, 2) == [(0, 2), (2, 3)]


cases = st.integers(1, 12).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), min_size=1, max_size=40), st.just(room), st.integers(0, 14))
)


@hypothesis.given(cases)
def test_windows_fit_and_reach_further_each(case):
    sizes, room, stride = case
    windows = tagging.cut_windows(sizes, room, stride)
    assert (windows[0][0], windows[-1][1]) == (0, len(sizes))
    for first, end in windows:
        assert sum(sizes[first:end]) <= room
        assert end == len(sizes) or sum(sizes[first : end + 1]) > room
    for (first, end), (later, further) in itertools.pairwise(windows):
        assert first < later <= end < further
        assert sum(sizes[later:end]) <= min(stride, room // 2)


@hypothesis.given(cases)
def test_every_word_is_read_once_where_its_lesser_context_is_greatest(case):
    sizes, room, stride = case
    windows = tagging.cut_windows(sizes, room, stride)
    reads = tagging.choose_reads(sizes, windows)
    assert sorted(word for pairs in reads for word, _ in pairs) == list(range(len(sizes)))
    for (first, end), pairs in zip(windows, reads, strict=True):
        for word, position in pairs:
            assert position == 1 + sum(sizes[first:word])
            rivals = [min(sum(sizes[a:word]), sum(sizes[word + 1 : b])) for a, b in windows if a <= word < b]
            assert min(sum(sizes[first:word]), sum(sizes[word + 1 : end])) == max(rivals)


def test_a_word_with_as_much_context_in_two_windows_is_read_in_the_first():
    reads = tagging.choose_reads([1] * 9, [(0, 6), (3, 9)])
    assert [[word for word, _ in pairs] for pairs in reads] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


sentences = st.lists(
    st.tuples(
        st.sampled_from(["Jim", "Henson", "puppeteer", "xxxx", "café", "中文", "😀", ""]), st.sampled_from(LABELS)
    ),
    min_size=1,
    max_size=30,
)


@hypothesis.given(sentences, st.integers(3, 20), st.integers(0, 9), st.integers(0, 9))
def test_outputs_that_point_at_the_gold_tags_decode_to_them(make_task, sentence, length, stride, noise):
    task = make_task(length, stride=stride)
    words, tags = map(list, zip(*sentence, strict=True))
    row = make_row(words, tags)
    example = task.encode(row)
    assert sum(feature["loss_mask"].sum() for feature in example.features) == len(words)
    assert all(len(feature["input_ids"]) <= length for feature in example.features)
    for feature, pairs in zip(example.features, read_in(example), strict=True):
        assert [task.labels[feature["labels"][position]] for _, position in pairs] == [tags[word] for word, _ in pairs]
        assert np.flatnonzero(feature["loss_mask"]).tolist() == [position for _, position in pairs]
    prediction = task.decode(example, pointing(task, example, tags, noise))
    assert prediction["tags"] == tags == task.gold(row)
    assert prediction["words"] == words
    assert prediction["text"] == " ".join(words)
    assert [(entity["label"], entity["text"]) for entity in prediction["entities"]] == [
        (label, " ".join(words[first:end])) for label, first, end in tagging.entity_spans(tags)
    ]


def test_a_prediction_has_probabilities_and_entities_at_characters(make_task):
    task = make_task()
    example = task.encode(make_row(HENSON, TAGS))
    logits = np.zeros((32, 5), np.float32)
    logits[1, 2], logits[2, 4] = np.log(4), np.log(16)  # 4 of 8, 16 of 20
    logits[[4, 5, 6], 0] = 1000  # too large to exponentiate
    prediction = task.decode(example, [{"logits": logits}])
    assert prediction["tags"] == TAGS
    assert prediction["probabilities"] == pytest.approx([0.5, 0.8, 1, 1, 1])
    (entity,) = prediction["entities"]
    assert entity.pop("probability") == pytest.approx(0.65)
    assert entity == {"label": "PER", "text": "Jim Henson", "start": 0, "end": 10}
    assert {type(value) for value in [*entity.values(), *prediction["probabilities"]]} == {str, int, float}


def test_parts_of_speech_mark_no_entities(make_task):
    for labels in (("NOUN", "VERB"), ("B", "E", "I", "S", "V"), ("O", "NOUN"), ("M", "U"), ("L", "W")):
        task = make_task(labels=labels)
        example = task.encode(make_row(["Jim", "was"], list(labels[:2])))
        prediction = task.decode(example, pointing(task, example, list(labels[:2])))
        assert prediction["tags"] == list(labels[:2])
        assert prediction["entities"] == []


RAW = [
    ("Jim Henson was in New York.", ["Jim", "Henson", "was", "in", "New", "York", "."]),
    ("  Café,\u00a0naïve\n", ["Café", ",", "naïve"]),
    ("cafe\u0301 x", ["cafe\u0301", "x"]),
    ("中文😀x", ["中", "文", "😀x"]),
    ("Jim在中文 👩\u200d👩\u200d👧!", ["Jim", "在", "中", "文", "👩\u200d👩\u200d👧", "!"]),
    ("a \u200b x", ["a", "\u200b", "x"]),
    ("\u200b中文", ["\u200b中", "文"]),
]


@pytest.mark.parametrize(("text", "words"), RAW)
def test_the_words_of_raw_text_are_the_tokenizers(make_task, text, words):
    task = make_task()
    example = task.encode(make_row(text), labelled=False)
    assert [text[start:end] for start, end in spans_of(example)] == words
    tags = ["O", "B-LOC", "I-LOC", "O", "O", "O", "O"]
    prediction = task.decode(example, pointing(task, example, tags))
    assert (prediction["text"], prediction["words"]) == (text, words)
    (entity,) = prediction["entities"]
    assert entity["text"] == text[entity["start"] : entity["end"]]
    start, end = text.index(words[1], len(words[0])), spans_of(example)[min(2, len(words) - 1)][1]
    assert (entity["start"], entity["end"]) == (start, end)


@hypothesis.given(st.text(st.sampled_from("aJx sé中文😀.'\t-ßİ"), min_size=1, max_size=20))
def test_raw_text_is_read_as_the_tokenizer_reads_it(make_task, text):
    hypothesis.assume(text.strip())
    task = make_task()
    example = task.encode(make_row(text), labelled=False)
    assert example.features[0]["input_ids"].tolist() == task.template.tokenizer.encode(text).ids
    starts, ends = (list(side) for side in zip(*spans_of(example), strict=True))
    assert all(start < end <= later for start, end, later in zip(starts, ends, [*starts[1:], len(text)], strict=True))
    assert "".join(text[start:end] for start, end in spans_of(example)) == "".join(text.split())


def test_raw_text_is_parted_by_white_space_where_the_tokenizer_has_no_words(tmp_path, tiny):
    tokenizer = type(tiny).from_str(tiny.to_str())
    assert tagging.word_spans("Jim's x", tokenizer) == [(0, 3), (3, 4), (4, 5), (6, 7)]
    plain = type(tiny)(tiny.model)
    plain.normalizer = normalizers.Lowercase()
    assert tagging.word_spans(" Jim's  x", plain) == [(1, 6), (8, 9)]


def test_words_and_tags_of_different_numbers_are_refused(make_task):
    for tags in (TAGS[:4], [*TAGS, "O"], []):
        message = refused(lambda tags=tags: make_task().encode(make_row(HENSON, tags)))
        assert message.endswith(f"5 words but {len(tags)} tags; give every word one tag")
    make_task().encode(make_row(HENSON, []), labelled=False)


def test_an_unknown_tag_is_refused(make_task):
    task = make_task(labels=("O", "B-PER"))
    message = refused(lambda: task.encode(make_row(["Jim", "Henson"], ["B-PER", "I-PER"])))
    assert "label 'I-PER' is not among those of the training data (O, B-PER); correct it" in message


@pytest.mark.parametrize("labelled", [True, False])
def test_a_row_without_words_is_refused(make_task, labelled):
    assert "column 'words' has no words" in refused(lambda: make_task().encode(make_row([], []), labelled))
    assert "column 'words' is an empty text" in refused(lambda: make_task().encode(make_row(" \n", ""), labelled))
    assert "column 'words' is empty" in refused(lambda: make_task().encode(make_row(None, ""), labelled))
    row = Row("train.jsonl line 3", {"text": "Jim"})
    assert "column 'words' is missing (columns: text); set task.words" in refused(
        lambda: make_task().encode(row, labelled)
    )


@pytest.mark.parametrize(
    ("words", "wrong"), [(["Jim", 3], "3"), (["Jim", None], "None"), (7, "7"), ([["Jim"]], "['Jim']")]
)
def test_words_that_are_not_texts_are_refused(make_task, words, wrong):
    message = refused(lambda: make_task().encode(make_row(words, "O O")))
    assert f"column 'words' has {wrong}, not a text; set task.words to a list of texts" in message


def test_tags_that_are_not_texts_are_refused(make_task):
    rows = [make_row(["Jim"], [3]), make_row(["Jim"])]
    for call in (make_task().encode, make_task().gold, lambda row: tagging.find_tags([row], "tags")):
        assert "column 'tags' has 3, not a text; set task.tags" in refused(lambda call=call: call(rows[0]))
        assert "column 'tags' is missing (columns: words); set task.tags" in refused(lambda call=call: call(rows[1]))


def test_the_tags_of_rows_are_o_and_then_in_order():
    rows = [make_row("a b", "I-PER O"), make_row("a b", ["B-LOC", "I-PER"])]
    assert tagging.find_tags(rows, "tags") == ("O", "B-LOC", "I-PER")
    assert tagging.find_tags(rows[1:], "tags") == ("B-LOC", "I-PER")
    assert tagging.find_tags([make_row("a", None, ner="B")], "ner") == ("B",)


UPOS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
PENN = (
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP PDT POS PRP PRP$ RB RP SYM TO UH VB WDT WP WP$ WRB -LRB- -RRB- . ``"
)


@pytest.mark.parametrize(
    ("labels", "mark"),
    [
        (["O", "B-PER"], True),
        (["I-PER"], True),
        (["O", "B-PER", "X"], True),
        (["O", "B", "I"], True),
        (["NOUN", "O"], False),
        (["B", "S", "V"], False),
        (["I-", "S-", "Nb"], False),
        (["O", "U-LOC", "U-PER"], True),
        (["S-LOC", "O"], True),
        (["B-PER", "L-PER"], True),
        (["O", "B-L-x", "I-L-x"], True),
        (["B-LOC", "M-LOC", "E-LOC", "S-LOC"], True),
        (["B", "M", "E", "S"], True),  # words of Chinese
        (["O", "B", "L", "U"], True),
        (["O"], True),
        (["L", "M", "U", "W"], False),
        *((["O", letter], False) for letter in "ESLUMWX"),
        (["M", "S"], False),
        (["I", "L", "M"], False),  # of no scheme
        (["S-BAR", "S", "NP", "VP"], False),
        (["W-ADV", "L-ADJ", "M-NUM"], False),
        (["O", "S-BAR", "SYM"], False),
        (UPOS.split(), False),
        (PENN.split(), False),
        (["N------S1R", "S----3MS4-", "U---------", "I---------"], False),  # positions of the Prague Arabic treebank
        (["A", "B", "E", "I", "N", "P", "S", "V", "X", "SYM"], False),
    ],
)
def test_which_labels_mark_entities(labels, mark):
    assert tagging.mark_entities(labels) is mark


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("O I-PER I-PER I-LOC", [("PER", 1, 3), ("LOC", 3, 4)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("B-PER I-PER E-PER I-PER S-PER E-PER", [("PER", 0, 3), ("PER", 3, 4), ("PER", 4, 5), ("PER", 5, 6)]),
        ("I-a-b I-a-b I-a", [("a-b", 0, 2), ("a", 2, 3)]),
        ("B I O I", [("_", 0, 2), ("_", 3, 4)]),
        ("NOUN Intj SYM B- U- M--- O", []),
        ("I-PER I-PER B-PER O", [("PER", 0, 2), ("PER", 2, 3)]),
        ("B-PER E-PER S-PER O", [("PER", 0, 2), ("PER", 2, 3)]),
        ("B-PER L-PER U-PER O", [("PER", 0, 2), ("PER", 2, 3)]),
        ("O U-LOC O", [("LOC", 1, 2)]),
        ("B-LOC M-LOC E-LOC S-LOC", [("LOC", 0, 3), ("LOC", 3, 4)]),
        ("B-LOC M-LOC E-LOC W-LOC", [("LOC", 0, 3), ("LOC", 3, 4)]),
        ("B M E S B E", [("_", 0, 3), ("_", 3, 4), ("_", 4, 6)]),
        ("B-L-x I-L-x L-x", [("L-x", 0, 2), ("x", 2, 3)]),
        ("O L-PER M-PER U-PER L-PER", [("PER", 1, 2), ("PER", 2, 3), ("PER", 3, 4), ("PER", 4, 5)]),
    ],
)
def test_entities_as_conlleval_reads_tags(tags, spans):
    assert tagging.entity_spans(tags.split()) == spans


LETTERS = "BIESLUMW"
TAG = st.one_of(
    st.just("O"),
    st.sampled_from(LETTERS),
    st.builds("{}-{}".format, *map(st.sampled_from, (LETTERS, ["PER", "a-b", "x"]))),
)


@hypothesis.settings(max_examples=500)
@hypothesis.given(st.lists(TAG, max_size=12))
def test_entities_are_the_matches_of_a_regular_expression(tags):
    expected = []
    for label in {tag[2:] for tag in tags if tag != "O"}:
        letters = "".join(tag[0] if tag != "O" and tag[2:] == label else " " for tag in tags)
        matches = re.finditer("[BIM][IM]*[EL]?|[ELSUW]", letters)
        expected += [(label or tagging.UNNAMED, *match.span()) for match in matches]
    assert tagging.entity_spans(tags) == sorted(expected, key=lambda entity: entity[1])


ENTITIES = json.loads((Path(__file__).parent / "goldens" / "entities.json").read_text())["schemes"]


@pytest.mark.parametrize("scheme", ENTITIES)
def test_entities_are_those_that_seqeval_found(scheme):
    for sentence in ENTITIES[scheme]["sentences"]:
        found = [list(entity) for entity in tagging.entity_spans(sentence["predicted"].split())]
        assert found == sentence["found"], sentence["predicted"]


SPELLINGS = {  # the letters of an entity's only, first, inner and last word
    "IOB2": "BBII",
    "IOE2": "EIIE",
    "IOBES": "SBIE",
    "BILOU": "UBIL",
    "BMES": "SBME",
    "BMEWO": "WBME",
}


@pytest.mark.parametrize("scheme", SPELLINGS)
@hypothesis.given(
    st.lists(st.tuples(st.sampled_from(["PER", "LOC", "U-x"]), st.integers(0, 2), st.integers(1, 4)), max_size=5)
)
def test_entities_written_in_a_scheme_are_read_from_it(scheme, entities):
    only, first, inner, last = SPELLINGS[scheme]
    tags, spans = [], []
    for label, gap, length in entities:
        tags += ["O"] * gap
        spans.append((label, len(tags), len(tags) + length))
        letters = only if length == 1 else first + inner * (length - 2) + last
        tags += [f"{letter}-{label}" for letter in letters]
    assert tagging.entity_spans(tags) == spans
