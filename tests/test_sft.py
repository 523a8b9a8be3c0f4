"""Prompts masked out of the loss, conversations, and over-long rows."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt import losses
from bertgpt.checkpoints.adapt import add_tokens
from bertgpt.data.tasks.making import task_tokens
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.sft import Responses
from bertgpt.data.tasks.task import TaskExamples
from bertgpt.data.tasks.templates import make_template
from bertgpt.errors import InputError
from bertgpt.tokenizers import train_bpe

LETTERS = add_tokens(train_bpe(["ant bee cow dog " * 9], 60), task_tokens("sft"))
FRAME = make_template(LETTERS, 16, bert=False, end="_end_")
TASK = Responses(FRAME)
START, MIDDLE, END = FRAME.start, FRAME.middle, FRAME.end
PLACE = "a.jsonl line 2"


def ids(text):
    return LETTERS.encode(text).ids


def chat(*turns):
    return Row(PLACE, {"messages": [{"role": role, "content": content} for role, content in turns]})


def targets(feature):
    """The tokens that count."""
    return feature["labels"][feature["loss_mask"] > 0].tolist()


def test_the_response_and_its_end_count_and_nothing_else():
    (feature,) = TASK.encode(Row(PLACE, {"prompt": "ant bee", "response": "cow dog"})).features
    whole = [START, *ids("ant bee"), MIDDLE, *ids("cow dog"), END]
    assert feature["input_ids"].tolist() == whole[:-1]
    assert feature["labels"].tolist() == whole[1:]
    assert targets(feature) == [*ids("cow dog"), END]
    prompt = len(ids("ant bee")) + 1  # the place of the delimiter
    assert feature["loss_mask"].tolist() == [0] * prompt + [1] * (len(whole) - 1 - prompt)


def test_the_gradient_is_zero_before_the_prompts_end_and_on_padding_and_nowhere_else():
    rows = [Row(PLACE, {"prompt": p, "response": r}) for p, r in (("ant bee", "cow"), ("dog", "ant bee cow dog"))]
    source = TaskExamples(TASK, [TASK.encode(row) for row in rows])
    batch = source.batch(np.arange(2))
    logits = np.random.default_rng(0).normal(size=(*batch["labels"].shape, 80)).astype(np.float32)
    gradient = np.asarray(jax.grad(lambda x: losses.lm_loss(x, batch).mean())(logits))
    for row, (prompt, response) in enumerate((("ant bee", "cow"), ("dog", "ant bee cow dog"))):
        first = len(ids(prompt)) + 1  # start, prompt, delimiter: the prompt's last position
        last = first + len(ids(response))  # the one that predicts the end
        assert (gradient[row, :first] == 0).all()
        assert (np.abs(gradient[row, first : last + 1]).max(-1) > 0).all()
        assert (gradient[row, last + 1 :] == 0).all()


def test_of_a_conversation_the_assistants_turns_count():
    row = chat(("system", "ant"), ("user", "bee"), ("assistant", "cow"), ("user", "dog"), ("assistant", "ant"))
    (feature,) = TASK.encode(row).features
    first, second = [START, *ids("ant"), MIDDLE, *ids("bee"), MIDDLE], [*ids("cow"), END, *ids("dog"), MIDDLE]
    whole = [*first, *second, *ids("ant"), END]
    assert feature["input_ids"].tolist() == whole[:-1]
    assert targets(feature) == [*ids("cow"), END, *ids("ant"), END]
    (with_more,) = TASK.encode(chat(("user", "bee"), ("assistant", "cow"), ("user", "dog"))).features
    assert with_more["labels"][-1] == END  # nothing is learnt after it


def test_a_long_prompt_loses_its_beginning():
    example = TASK.encode(Row(PLACE, {"prompt": "ant bee cow dog " * 9, "response": "cow dog"}))
    (feature,) = example.features
    kept = 16 + 1 - 2 - len(ids("cow dog")) - 1  # start and delimiter, response and end
    whole = [START, *ids("ant bee cow dog " * 9)[-kept:], MIDDLE, *ids("cow dog"), END]
    assert [*feature["input_ids"], feature["labels"][-1]] == whole
    assert targets(feature) == [*ids("cow dog"), END]
    assert example.cut


def test_a_long_prompt_may_be_left_out_instead():
    example = Responses(FRAME, cut=False).encode(Row(PLACE, {"prompt": "ant bee " * 9, "response": "cow"}))
    assert (example.features, example.cut) == ([], True)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_row_is_whole_cut_from_the_left_or_left_out(prompt, response):
    row = Row(PLACE, {"prompt": "ant " * prompt, "response": "bee " * response})
    first, second = ids("ant " * prompt), ids("bee " * response)
    example = TASK.encode(row)
    if len(second) + 3 > 17:
        assert example.features == []
        return
    whole = [START, *first, MIDDLE, *second, END]
    whole = [START, *whole[max(1, len(whole) - 16) :]]
    (feature,) = example.features
    assert [*feature["input_ids"], feature["labels"][-1]] == whole
    assert targets(feature) == [*second, END]


def test_the_rest_of_a_response_whose_beginning_is_gone_does_not_count():
    row = chat(("user", "ant"), ("assistant", "bee " * 12), ("user", "cow"), ("assistant", "dog"))
    (feature,) = TASK.encode(row).features
    assert feature["input_ids"][:3].tolist() == [START, *ids("bee bee")]
    assert targets(feature) == [*ids("dog"), END]


def test_a_null_conversation_is_none():
    (feature,) = TASK.encode(Row(PLACE, {"messages": None, "prompt": "ant", "response": "bee"})).features
    assert targets(feature) == [*ids("bee"), END]


def test_a_prediction_reads_up_to_where_the_response_begins():
    for row in (
        Row(PLACE, {"prompt": "ant", "response": "bee"}),
        chat(("user", "ant"), ("assistant", "bee")),
        chat(("user", "ant")),
    ):
        (feature,) = TASK.encode(row, labelled=False).features
        assert feature["input_ids"].tolist() == [START, *ids("ant"), MIDDLE]


def test_other_columns():
    task = Responses(FRAME, prompt="q", response="a", messages="talk")
    (feature,) = task.encode(Row(PLACE, {"q": "ant", "a": "bee", "messages": "no"})).features
    assert targets(feature) == [*ids("bee"), END]
    row = Row(PLACE, {"talk": [{"role": "user", "content": "ant"}, {"role": "assistant", "content": "bee"}]})
    assert targets(task.encode(row).features[0]) == [*ids("bee"), END]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(PLACE, {"prompt": "a"}), "column 'response' is missing .*; set task.response"),
        (Row(PLACE, {"response": "a"}), "column 'prompt' is missing .*; set task.prompt"),
        (Row(PLACE, {"prompt": "a", "response": " "}), "column 'response' is an empty text"),
        (Row(PLACE, {"prompt": "_end_", "response": "a"}), "'_end_' has no tokens except special ones"),
        (Row(PLACE, {"messages": "hello"}), "messages must be a list of"),
        (Row(PLACE, {"messages": ["hello"]}), "messages must be a list of"),
        (chat(("bot", "a")), "message 1 has role 'bot'; choose one of system, user, assistant"),
        (chat(("user", "a"), ("assistant", "")), "message 2 has no text under 'content'"),
        (chat(("user", "a")), "no message of role 'assistant'"),
        (chat(("assistant", "a"), ("user", "b")), "message 1 has role 'assistant'; begin with"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, message):
    with pytest.raises(InputError, match=f"^{PLACE}: {message}"):
        TASK.encode(row)


def test_a_conversation_without_a_question_cannot_be_answered():
    with pytest.raises(InputError, match="no message to answer; give one of role 'user'"):
        TASK.encode(chat(("assistant", "a")), labelled=False)
