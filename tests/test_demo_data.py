"""Rows of the demonstration's data from tiny texts, their splits, and the baselines."""

import io
import json
import re
import tarfile
import zipfile

import pytest

from benchmarks import demo_data, side_by_side
from bertgpt.errors import InputError


def by_text(row):
    return [row["text"]]


def test_a_text_stands_in_one_split_whatever_its_case_and_spaces():
    rows = [{"text": text} for number in range(200) for text in (f"Text {number}", f"text  {number}")]
    splits = demo_data.divide(rows, by_text, 0.3)
    kept = {name: {row["text"].lower().replace("  ", " ") for row in split} for name, split in splits.items()}
    assert not kept["train"] & kept["eval"]
    assert len(splits["train"]) + len(splits["eval"]) == 400
    assert 40 < len(kept["eval"]) < 80
    assert demo_data.divide(reversed(rows), by_text, 0.3)["eval"] == splits["eval"][::-1]


def test_a_row_of_both_splits_is_left_out():
    rows = [{"text": str(a), "pair": f"p{b}"} for a in range(30) for b in range(30)]
    splits = demo_data.divide(rows, demo_data.by("text", "pair"), 0.5)
    for name in ("text", "pair"):
        assert not {row[name] for row in splits["train"]} & {row[name] for row in splits["eval"]}
    assert 0 < len(splits["train"]) + len(splits["eval"]) < 900


def test_sentences_have_labels_by_sign_and_lose_the_neutral():
    text = "1\t2.25\tGood  &amp; warm\r\n2\t-0.4\tFlat\r\n3\t-0.5\tBad\tly\r\n4\t1.0\tgood & warm\r\n"
    assert demo_data.scores(text) == [{"text": "Good & warm", "score": 2.25}, {"text": "Bad ly", "score": -0.5}]
    assert [row["label"] for row in demo_data.sentiments(text)] == ["positive", "negative"]


def test_chinese_reviews_have_the_label_of_their_file_and_only_one():
    rows = demo_data.reviews("很差\n\n一般 \n很差\n", "很好\n一般\n")
    assert rows == [{"text": "很差", "label": "negative"}, {"text": "很好", "label": "positive"}]


def test_pairs_have_named_labels_and_no_double():
    row = {"context": " We  share it. ", "question": "who?", "answer": "True"}
    text = "".join(
        json.dumps(row | other) + "\n" for other in ({}, {"question": "Who?"}, {"answer": "False", "context": "x"})
    )
    assert demo_data.pairs(text) == [
        {"text": "who?", "pair": "We share it.", "label": "relevant"},
        {"text": "who?", "pair": "x", "label": "irrelevant"},
    ]


def test_choices_lose_their_letters_and_broken_lists():
    whole = {"question": "Where? ", "options": "\nA. a\nB. b c\nC. A. d\nD. e\nE. f?", "answer": "B. b c"}
    broken = {"question": "What A. x", "options": "\nC. a\nD. b\nE. c", "answer": "D. b"}
    rows = demo_data.choices(json.dumps(whole) + "\n" + json.dumps(broken))
    assert rows == [{"text": "Where?", "choices": ["a", "b c", "A. d", "e", "f?"], "label": 1}]


@pytest.mark.parametrize(
    ("answer", "spelling"),
    [("major", "Major"), ("40,000", "40 , 000"), ("1910-12", "1910 - 12"), ("(a)", "( A )"), ("ajor", None)],
)
def test_an_answer_is_found_in_the_passages_own_spelling(answer, spelling):
    found = demo_data.find_answer("A majority Major  of  40 , 000 in 1910 - 12 ( A )", answer)
    assert (found and found[0]) == spelling
    assert not found or found.start() == "A majority Major  of  40 , 000 in 1910 - 12 ( A )".index(spelling)


def test_questions_are_written_in_squads_layout():
    lines = [("P one .", "q1", "One"), ("P one .", "q2", "unknown"), ("P one .", "q3", "two"), ("Z", "q4", "z")]
    text = "\n".join(json.dumps({"passage": p, "question": q, "answer": a}) for p, q, a in lines)
    assert [row["question"] for row in demo_data.questions(text)] == ["q1", "q4"]
    first, second = json.loads(demo_data.squad(demo_data.questions(text)))["data"][0]["paragraphs"]
    assert [question["answers"] for question in first["qas"]] == [[{"text": "one", "answer_start": 2}]]
    assert (second["context"], [question["id"] for question in second["qas"]]) == ("Z", ["1"])


def test_an_answers_sentences_are_kept_with_their_neighbours(monkeypatch):
    monkeypatch.setattr(demo_data, "WORDS", 4)
    passage = "One a . Two b . Three c . Four d ."
    kept = {
        word: passage[slice(*demo_data.excerpt(passage, *re.search(word, passage).span()))] for word in ("Two", "Four")
    }
    assert kept["Four"] == "Three c . Four d ."
    assert kept["Two"] in ("One a . Two b . ", "Two b . Three c . ")
    assert passage[slice(*demo_data.excerpt(passage, 4, 13))] == "One a . Two b . "  # an answer over two sentences


def test_the_kinds_of_names_in_a_sentence():
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nof IN O I-ORG\nRome X X B-LOC\n\nOK X X O\n"
    assert demo_data.kinds(text) == [{"text": "EU of Rome", "label": ["LOC", "ORG"]}, {"text": "OK", "label": []}]


def test_entities_keep_four_columns_without_document_marks():
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    rows = demo_data.entities(text)
    assert [row["text"] for row in rows] == ["EU rejects", "Peter"]
    written = demo_data.RENDER[".conll"](rows)
    assert written == "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n\n"
    assert written.count(demo_data.MARKS[".conll"]) == 2


def test_only_dialogues_keep_more_than_a_question_and_its_first_reply():
    texts = dict.fromkeys(demo_data.TOPICS, "conversations: []")
    texts["conversations"] = "conversations:\n- - a\n  - b\n  - c\n  - d\n  - e\n"
    texts["computers"] = "conversations:\n- - q\n  - r\n  - s\n  - t\n- - alone\n- - Q\n  - R\n"
    rows = demo_data.chats(*texts.values())
    assert [[turn["content"] for turn in row["messages"]] for row in rows] == [["a", "b", "c", "d"], ["q", "r"]]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"] * 2
    assert demo_data.asked(rows[0]) == ["a", "c"]


def archives(inner: bytes) -> tuple[bytes, bytes]:
    """A zip and a tar.gz with one member."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("d/one", inner)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        info = tarfile.TarInfo("d/one")
        info.size = len(inner)
        archive.addfile(info, io.BytesIO(inner))
    return zipped.getvalue(), tarred.getvalue()


def test_members_are_read_from_archives_in_archives(monkeypatch):
    for inner in archives(b"text"):
        for outer in archives(inner):
            assert demo_data.read_member(outer, "d/one!d/one") == b"text"
    monkeypatch.setattr(demo_data, "MAX_BYTES", 3)
    for archive in archives(b"text"):
        with pytest.raises(InputError, match="4 bytes"):
            demo_data.read_member(archive, "d/one")


def test_what_pip_cannot_fetch_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_data.sys, "executable", "false")
    assert side_by_side.leave(lambda: demo_data.main([str(tmp_path)])) == 2
    assert capsys.readouterr().err == "error: pip cannot download vaderSentiment==3.2.1: no file\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "packages"]


def test_what_is_complete_is_not_fetched_again(tmp_path, capsys):
    (tmp_path / "faq_train.jsonl").write_text("{}\n{}\n")
    (tmp_path / "faq_eval.jsonl").write_text("{}\n")
    task = next(task for task in demo_data.TASKS if task.name == "faq.jsonl")
    demo_data.write_task(task, tmp_path)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "faq_train.jsonl: 2 rows",
        "faq_eval.jsonl: 1 rows",
    ]


def test_a_package_that_is_there_becomes_both_files(tmp_path, capsys):
    rows = "".join(json.dumps({"instruction": f"q{n}", "output": f"a{n}"}) + "\n" for n in range(50))
    (tmp_path / "packages").mkdir()
    with zipfile.ZipFile(tmp_path / "packages" / "zaragoza_construction_faq-1.2.1-py3-none-any.whl", "w") as archive:
        archive.writestr(demo_data.FAQ[0], rows)
    demo_data.write_task(next(task for task in demo_data.TASKS if task.name == "faq.jsonl"), tmp_path)
    written = [(tmp_path / f"faq_{split}.jsonl").read_text().splitlines() for split in ("train", "eval")]
    assert len(written[0]) + len(written[1]) == 50
    assert 0 < len(written[1]) < len(written[0])
    assert f"faq_eval.jsonl: {len(written[1])} rows, CC BY 4.0" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def baselines():
    pytest.importorskip("sklearn")
    from benchmarks import baselines

    return baselines


def test_majority_says_the_training_splits_label(baselines):
    assert baselines.majority(["a", "a", "b"], ["b", "b", "b", "a"]) == 0.25


def test_tfidf_learns_words_and_the_likeness_of_pairs(baselines):
    texts = [f"good {n}" if n % 2 else f"bad {n}" for n in range(40)]
    assert baselines.tfidf(texts, [n % 2 for n in range(40)], ["good", "bad"], [1, 0], 0) == 1
    words = [f"w{n}x" for n in range(30)]
    alike = [(word, word) for word in words[:20]]
    unlike = [(word, words[(n + 7) % 30]) for n, word in enumerate(words)]
    fresh = [(word, word) for word in words[20:]] + [(words[n], words[n - 3]) for n in range(20, 30)]
    assert baselines.tfidf(alike + unlike, [1] * 20 + [0] * 30, fresh, [1] * 10 + [0] * 10, 0) == 1


def test_the_best_fixed_span_is_chosen_on_train(baselines):
    def exact(prediction, answers):
        return float(prediction in answers)

    train = [{"context": "a b c d", "answers": ["b c"]}, {"context": "e f g", "answers": ["f g"]}]
    held_out = [{"context": "h i j", "answers": ["i j"]}, {"context": "h i j", "answers": ["h"]}]
    assert baselines.best_fixed_span(train, held_out, exact) == {"span": (1, 3), "f1": 0.5, "exact_match": 0.5}


def test_an_unknown_word_gets_the_most_frequent_tag(baselines):
    train = [[("in", "O"), ("Rome", "LOC"), ("the", "O")], [("Rome", "LOC"), ("Rome", "PER"), ("a", "O")]]
    assert baselines.most_frequent_tag(train, [[("Rome", "?"), ("new", "?")]]) == [["LOC", "O"]]
