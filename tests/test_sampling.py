"""Options of generation against loops that are written out, each token from a plain pass over the whole text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_folders import LETTERS
from tokenizers import Tokenizer, decoders, models

import bertgpt
from bertgpt.inference import decoding
from bertgpt.inference.sampling import make_sampling, penalize
from bertgpt.inference.stop_strings import StopStrings
from bertgpt.tokenizers.kinds import bpe as make_bpe

PROMPTS = [[7], [3, 14, 15, 92, 65], list(range(40, 60)), [9, 8]]
HOT = {"temperature": 1.5, "key": jax.random.key(4)}
LOW = make_bpe(models.BPE(LETTERS, [("l", "o"), ("lo", "w</w>")], unk_token="<unk>", end_of_word_suffix="</w>"))
LOW.add_special_tokens(["<unk>"])


@pytest.fixture(scope="module")
def gpt():
    """A model whose tokens differ in likelihood, and its parameters."""
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**TINY | {"vocab_size": 200, "initializer_range": 0.5}))
    return model, jax.jit(model.init)(jax.random.key(0), np.ones((1, 2), int))["params"]


@pytest.fixture(scope="module")
def written_out(gpt):
    """(prompt, count, options) -> the greedy ids, and the log-probabilities of what was added."""
    model, params = gpt
    logits_of = jax.jit(lambda ids: model.apply({"params": params}, ids).logits[0])

    def run(prompt, count, repetition_penalty=1.0, min_new_tokens=0, end_id=None):
        ids, values = list(prompt), []
        for number in range(count):
            logits = np.array(logits_of(np.array([ids + [0] * (32 - len(ids))]))[len(ids) - 1])
            values.append(logits - np.log(np.exp(logits).sum()))
            for token in set(ids):
                logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
            if number < min_new_tokens:
                logits[end_id] = -np.inf
            ids.append(int(logits.argmax()))
            values[-1] = values[-1][ids[-1]]
            if ids[-1] == end_id:
                break
        return ids, values

    return run


def lists(rows):
    return [np.asarray(row).tolist() for row in rows]


def test_a_penalty_counts_each_token_of_the_text_once():
    logits = jnp.array([[2.0, -2.0, 1.0, -1.0, 0.0, 3.0], [2.0, -2.0, 1.0, -1.0, 0.0, 3.0]])
    ids = jnp.array([[5, 0, 1, 0, 2], [4, 3, 5, 5, 1]])  # of the first row, slots 1 to 3; of the second, 0 to 3
    expected = [[0.5, -8.0, 1.0, -1.0, 0.0, 3.0], [2.0, -2.0, 1.0, -4.0, 0.0, 0.75]]
    np.testing.assert_array_equal(penalize(logits, ids, jnp.array([1, 0]), jnp.int32(4), 4.0), expected)
    np.testing.assert_array_equal(penalize(logits, ids, jnp.array([5, 5]), jnp.int32(4), 4.0), logits)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_penalized_rows_are_what_is_written_out(gpt, written_out, penalty):
    options = {"repetition_penalty": penalty}
    expected = [written_out(prompt, 9, **options)[0] for prompt in PROMPTS]
    assert lists(bertgpt.generate(*gpt, PROMPTS, 9, **options)) == expected
    assert list(bertgpt.stream(*gpt, PROMPTS[1], 9, **options)) == expected[1][5:]
    assert expected[1] != written_out(PROMPTS[1], 9)[0]


def test_padding_is_no_token_of_the_text(gpt, monkeypatch):
    monkeypatch.setattr(decoding, "BUCKET", 8)
    short = lists(bertgpt.generate(*gpt, [[7, 9]], 6, repetition_penalty=1.5))
    padded = lists(bertgpt.generate(*gpt, [[7, 9], list(range(1, 25))], 6, repetition_penalty=1.5))
    assert short[0] == padded[0]


def test_the_end_token_is_held_back(gpt, written_out):
    end = written_out(PROMPTS[1], 9)[0][5]
    for least in (0, 1, 2, 9):
        options = {"end_id": end, "min_new_tokens": least}
        expected = [written_out(prompt, 9, **options)[0] for prompt in PROMPTS]
        assert lists(bertgpt.generate(*gpt, PROMPTS, 9, **options)) == expected
        assert list(bertgpt.stream(*gpt, PROMPTS[1], 9, **options)) == expected[1][5:]
        assert (len(expected[1]) == 6) == (least == 0)
        assert least <= len(expected[1]) - 5


def test_a_sample_has_no_end_token_too_early(gpt):
    ids = bertgpt.generate(*gpt, np.ones((300, 1), int), 3, **HOT, end_id=67, min_new_tokens=2)
    assert not (np.asarray(ids)[:, 1:3] == 67).any()
    assert (np.asarray(ids)[:, 3] == 67).any()


def test_log_probabilities_are_those_of_the_model(gpt, written_out):
    end = written_out(PROMPTS[1], 9)[0][5 + 3]
    options = {"repetition_penalty": 1.3, "end_id": end}
    ids, values = bertgpt.generate(*gpt, PROMPTS, 9, **options, output_log_probs=True)
    assert lists(ids) == lists(bertgpt.generate(*gpt, PROMPTS, 9, **options))
    for prompt, row, row_values in zip(PROMPTS, ids, values, strict=True):
        expected, expected_values = written_out(prompt, 9, **options)
        assert row.tolist() == expected
        assert row_values.dtype == np.float32
        np.testing.assert_allclose(row_values, expected_values, atol=1e-5)
    assert len(values[1]) < 9


def test_log_probabilities_of_samples_are_before_temperature_and_filters(gpt):
    prompts, options = np.ones((9, 2), int), HOT | {"top_k": 20}
    end = int(bertgpt.generate(*gpt, prompts, 4, **options)[0, 3])  # the first row ends before the others
    ids, values = bertgpt.generate(*gpt, prompts, 4, **options, end_id=end, output_log_probs=True)
    assert ids.shape == (9, 6)
    assert values.shape == (9, 4)
    assert values.dtype == jnp.float32
    logits = gpt[0].apply({"params": gpt[1]}, ids[:, :-1]).logits[:, 1:]
    expected = np.array(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 2:, None], axis=-1)[..., 0])
    after = np.cumsum(np.asarray(ids)[:, 2:] == end, axis=1) > 1
    assert after[0].any()
    assert not after[:, 3].all()
    np.testing.assert_allclose(np.asarray(values)[~after], expected[~after], atol=1e-5)
    assert not np.asarray(values)[after].any()


def test_after_the_end_log_probabilities_are_zero(gpt, written_out):
    end = written_out(PROMPTS[1], 9)[0][5 + 3]
    _, values = bertgpt.generate(*gpt, np.array([PROMPTS[1]] * 2), 9, end_id=end, output_log_probs=True)
    assert (np.asarray(values) != 0).tolist() == [[True] * 4 + [False] * 5] * 2


def test_samples_of_a_prompt_follow_each_other(gpt):
    options = HOT | {"top_k": 50, "repetition_penalty": 1.2, "output_log_probs": True}
    rows, values = bertgpt.generate(*gpt, PROMPTS, 6, **options, num_return_sequences=3)
    repeated, repeated_values = bertgpt.generate(*gpt, [prompt for prompt in PROMPTS for _ in range(3)], 6, **options)
    assert lists(rows) == lists(repeated)
    np.testing.assert_allclose(values, repeated_values, atol=1e-5)
    assert len({tuple(row) for row in lists(rows)}) == 12
    array = bertgpt.generate(*gpt, np.array(PROMPTS[3:]), 6, **HOT, num_return_sequences=3)
    assert array.shape == (3, 8)


def test_a_stop_string_ends_where_its_last_token_does():
    def ends(string, *ids):
        return StopStrings([string], LOW).end_at(ids)

    assert ends("ow", 1, 2, 3)
    assert ends("lo", 5)  # the token is longer
    assert ends("w l", 5, 4)  # it begins before
    assert ends(" ", 5, 1)  # a space belongs to the token that follows it
    assert ends("<unk>", 1, 0)
    assert ends("low l", *[5] * 9, 1)
    assert not ends("lo", 1, 2, 3)  # an earlier token completed it
    assert not ends("lo", 1)
    assert not ends("low", 2, 3)
    assert StopStrings(["x", "o"], LOW).end_at([1, 2])


def test_a_character_may_need_several_tokens():
    symbols = {"Ã": 0, "©": 1, "a": 2}  # the two bytes of é, as ByteLevel writes them
    tokenizer = Tokenizer(models.BPE(symbols, []))
    tokenizer.decoder = decoders.ByteLevel()
    stop = StopStrings(["aé"], tokenizer)
    assert [stop.end_at([2, 2, 0, 1][:size]) for size in range(1, 5)] == [False, False, False, True]
    assert StopStrings(["é"], tokenizer).end_at([0, 1])


def test_the_text_of_a_token_may_depend_on_the_one_before():
    tokenizer = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2}, []))
    tokenizer.decoder = decoders.Metaspace()  # takes the space from the first token
    assert StopStrings([" b"], tokenizer).end_at([1, 0, 2])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 40), st.integers(1, 12))
def test_the_first_end_is_where_the_text_first_has_the_string(ids, start, size):
    texts = [LOW.decode(ids[:count], skip_special_tokens=False) for count in range(len(ids) + 1)]
    string = texts[-1][start : start + size] or "zz"
    first = [count for count, text in enumerate(texts) if string in text][:1]
    stop = StopStrings([string], LOW)
    assert [count for count in range(1, len(ids) + 1) if stop.end_at(ids[:count])][:1] == first


def first_with(tokenizer, row, prompt, string):
    """The row up to the first token after the prompt with which the text has the string."""
    for size in range(len(prompt) + 1, len(row) + 1):
        if string in tokenizer.decode(row[:size], skip_special_tokens=False):
            return row[:size]
    return row


@pytest.mark.parametrize("options", [{}, HOT])
def test_rows_end_at_a_stop_string(gpt, bpe, options):
    full = lists(bertgpt.generate(*gpt, PROMPTS, 9, **options))
    stop = {"stop_strings": [bpe.decode(full[1][7:9]), "never"], "tokenizer": bpe}
    expected = [
        first_with(bpe, row, prompt, stop["stop_strings"][0]) for row, prompt in zip(full, PROMPTS, strict=True)
    ]
    assert len(expected[1]) <= 9 < 14
    rows, values = bertgpt.generate(*gpt, PROMPTS, 9, **options, **stop, output_log_probs=True)
    assert lists(rows) == expected
    _, whole = bertgpt.generate(*gpt, PROMPTS, 9, **options, output_log_probs=True)
    for prompt, row, kept, all_values in zip(PROMPTS, expected, values, whole, strict=True):
        np.testing.assert_allclose(kept, all_values[: len(row) - len(prompt)], atol=1e-5)
    alone = bertgpt.generate(*gpt, PROMPTS[1:2], 9, **options)[0].tolist()  # its samples differ from those in a batch
    string = bpe.decode(alone[7:9])
    expected_alone = first_with(bpe, alone, PROMPTS[1], string)
    tokens = list(bertgpt.stream(*gpt, PROMPTS[1], 9, **options, stop_strings=string, tokenizer=bpe))
    assert PROMPTS[1] + tokens == expected_alone


def test_a_string_may_begin_in_the_prompt_but_not_end_there(gpt, bpe):
    (row,) = lists(bertgpt.generate(*gpt, PROMPTS[1:2], 9))
    before, across = bpe.decode(row[3:5]), bpe.decode(row[4:6])
    stopped = [
        lists(bertgpt.generate(*gpt, PROMPTS[1:2], 9, stop_strings=[s], tokenizer=bpe)) for s in (before, across)
    ]
    assert stopped == [[row], [row[:6]]]


def test_stopped_rows_of_an_array_are_filled_with_the_end_token(gpt, bpe):
    (row,) = lists(bertgpt.generate(*gpt, PROMPTS[1:2], 9))
    stop = {"stop_strings": [bpe.decode(row[7:9])], "tokenizer": bpe}
    prompts = np.array(PROMPTS[1:2])
    end = next(token for token in range(1, 200) if token not in row)
    ids, values = bertgpt.generate(*gpt, prompts, 9, **stop, end_id=end, output_log_probs=True)
    size = len(first_with(bpe, row, PROMPTS[1], stop["stop_strings"][0]))
    assert np.asarray(ids)[0].tolist() == row[:size] + [end] * (14 - size)
    assert (np.asarray(values)[0] != 0).tolist() == [True] * (size - 5) + [False] * (14 - size)
    with pytest.raises(bertgpt.InputError, match="needs end_id, which fills ended rows; or give lists"):
        bertgpt.generate(*gpt, prompts, 9, **stop)


def test_samples_stop_each_at_its_own_string(gpt, bpe):
    options = HOT | {"num_return_sequences": 4}
    full = lists(bertgpt.generate(*gpt, PROMPTS[:2], 9, **options))
    string = bpe.decode(full[5][6:8])
    rows = lists(bertgpt.generate(*gpt, PROMPTS[:2], 9, **options, stop_strings=string, tokenizer=bpe))
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(4)]
    assert rows == [first_with(bpe, row, prompt, string) for row, prompt in zip(full, prompts, strict=True)]


def test_what_is_not_used_is_not_in_the_program(gpt):
    default = make_sampling(200, 9)
    assert jax.tree.structure(make_sampling(200, 9, end_id=3, top_k=4)) == jax.tree.structure(default)
    assert len(jax.tree.leaves(default)) == 5
    state = next(decoding._states(*gpt, [np.array([1, 2], np.int32)], 9, default, None))
    assert len(jax.tree.leaves(state)) == 5 + 3 * len(state.cache)
    decoding._run.clear_cache()
    for options in ({}, {"repetition_penalty": 1.0, "min_new_tokens": 0, "num_return_sequences": 1, "end_id": 3}):
        bertgpt.generate(*gpt, [[1, 2]], 9, **options)
    assert decoding._run._cache_size() == 1
    for penalty in (1.2, 3.0):
        bertgpt.generate(*gpt, [[1, 2]], 9, repetition_penalty=penalty)
    assert decoding._run._cache_size() == 2
    for least in (1, 5):
        bertgpt.generate(*gpt, [[1, 2]], 9, min_new_tokens=least, end_id=7)
    assert decoding._run._cache_size() == 3


def test_a_program_serves_a_whole_text_that_is_checked(gpt, bpe):
    decoding._next.clear_cache()
    rows = bertgpt.generate(*gpt, [[1, 2], [4, 5, 6]], 9, stop_strings="never", tokenizer=bpe)
    assert [len(row) for row in rows] == [11, 12]
    assert decoding._next._cache_size() == 1


def test_ended_rows_give_no_nan(gpt, bpe):
    full = lists(bertgpt.generate(*gpt, PROMPTS[:2], 9))
    states = []
    stop = StopStrings([bpe.decode(full[1][6:8])], bpe)
    arrays = [np.array(prompt, np.int32) for prompt in PROMPTS[:2]]
    for state in decoding._states(*gpt, arrays, 9, make_sampling(200, 9, output_log_probs=True), stop):
        states.append((np.array(state.done), np.array(state.token), np.array(state.log_probs)))
    assert any(done.any() and not done.all() for done, _, _ in states[:-1])
    assert all((token >= 0).all() and np.isfinite(values).all() for _, token, values in states)


def test_no_prompts_have_no_samples(gpt):
    options = HOT | {"num_return_sequences": 3, "output_log_probs": True}
    assert bertgpt.generate(*gpt, [], 4, **options) == ([], [])
    ids, values = bertgpt.generate(*gpt, np.zeros((0, 3), int), 4, **options)
    assert (ids.shape, values.shape) == ((0, 7), (0, 4))
    ids, values = bertgpt.generate(*gpt, np.array([[1, 2]]), 0, **options)
    assert (ids.tolist(), values.shape) == ([[1, 2]] * 3, (3, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0 must be at least 0.0001 and below 10000"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"repetition_penalty": 1e-39}, "repetition_penalty 1e-39"),
        ({"min_new_tokens": -1, "end_id": 3}, "min_new_tokens -1 must be from 0 to max_new_tokens, 4"),
        ({"min_new_tokens": 5, "end_id": 3}, "min_new_tokens 5 must be from 0 to max_new_tokens, 4"),
        ({"min_new_tokens": 2}, "min_new_tokens needs end_id"),
        ({"stop_strings": ["a"]}, "stop_strings needs a tokenizer"),
        ({"stop_strings": ["a", ""], "tokenizer": LOW}, "stop string '' must be a text of at least one character"),
        ({"stop_strings": [3], "tokenizer": LOW}, "stop string 3 must be a text"),
        ({"stop_strings": "", "tokenizer": LOW}, "stop string ''"),
        ({"num_return_sequences": 0}, "num_return_sequences 0 must be at least 1"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 needs a temperature above 0"),
    ],
)
def test_impossible_options_are_refused(gpt, options, message):
    with pytest.raises(bertgpt.InputError, match=message):
        bertgpt.generate(*gpt, PROMPTS, 4, **options)
