"""Generated ids, their log-probabilities and the distribution of samples, under each option of `generate`."""

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference import VOCAB, make_reference
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.generation.stopping_criteria import StopStringCriteria

import bertgpt
from bertgpt.inference.stop_strings import StopStrings

NAME = "OpenAIGPTLMHeadModel"
WORDS = ["abcdef fed cab the cat sat on the mat and the dog ran over the hill", "she said that he had seen the big cat"]
PROMPT, ROWS, END = [17, 3, 40, 3, 22], 6000, 14  # likely after the prompt
GREEDY = [
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"min_new_tokens": 6},
    {"min_new_tokens": 9, "repetition_penalty": 1.1},
]
SAMPLED = [
    {"temperature": 0.6},
    {"repetition_penalty": 2.5},
    {"min_new_tokens": 1},
    {"min_new_tokens": 2, "temperature": 0.8},
    {"top_k": 7},
    {"top_p": 0.6},
    {"repetition_penalty": 1.6, "min_new_tokens": 1, "temperature": 0.7, "top_k": 30, "top_p": 0.8},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Their model, ours, our parameters, our tokenizer and theirs, from one folder."""
    folder = tmp_path_factory.mktemp("gpt")
    reference = make_reference(NAME)
    reference.save_pretrained(folder / "theirs")
    model, params = bertgpt.load_pretrained(folder / "theirs")
    tokenizer = bertgpt.tokenizers.train_bpe(WORDS * 3, VOCAB)
    bertgpt.save_pretrained(folder / "ours", model, params, tokenizer)
    return reference, model, params, tokenizer, transformers.AutoTokenizer.from_pretrained(folder / "ours")


def theirs(reference, prompts, count, end, **options):
    """What their `generate` returns; what is not named is off, whatever their defaults are."""
    sampled = {"do_sample": False} if "temperature" not in options else {"do_sample": True, "top_k": 0, "top_p": 1.0}
    ids = torch.tensor(np.asarray(prompts))
    settings = {"attention_mask": torch.ones_like(ids), "use_cache": False, "return_dict_in_generate": True}
    settings |= {"output_logits": True, "output_scores": True, "eos_token_id": end, "pad_token_id": end or 0}
    return reference.generate(ids, max_new_tokens=count, **settings | sampled | options)


@pytest.mark.parametrize("options", GREEDY)
def test_greedy_ids_and_log_probabilities(pair, options, measured):
    reference, model, params, *_ = pair
    prompts = np.random.default_rng(0).integers(10, VOCAB, (12, 5))
    penalty = options.get("repetition_penalty", 1.0)
    end = int(theirs(reference, prompts[:1], 3, None, repetition_penalty=penalty).sequences[0, -1])
    output = theirs(reference, prompts, 15, end, **options)
    expected = output.sequences.numpy()
    ids, values = bertgpt.generate(model, params, prompts, 15, end_id=end, output_log_probs=True, **options)
    assert np.asarray(ids)[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (np.asarray(ids)[:, expected.shape[1] :] == end).all()  # theirs are as long as the longest row
    ends = expected[:, 5:] == end
    assert ends.any() or "min_new_tokens" in options
    assert len({tuple(row) for row in expected[:, 5:].tolist()}) > 3
    scores = reference.compute_transition_scores(output.sequences, output.logits, normalize_logits=True).numpy()
    scores = np.where(np.cumsum(ends, axis=1) - ends > 0, 0, scores)  # 0 after the end
    difference = abs(np.asarray(values)[:, : scores.shape[1]] - scores).max()
    assert measured(NAME, "log-probabilities", float(difference)) <= 1e-5
    assert not np.asarray(values)[:, scores.shape[1] :].any()


def test_greedy_ids_up_to_a_stop_string(pair):
    reference, model, params, tokenizer, their_tokenizer = pair
    whole = [tokenizer.id_to_token(index).endswith("</w>") for index in range(VOCAB)]
    for prompt in np.random.default_rng(1).integers(10, VOCAB, (6, 5)).tolist():
        (row,) = bertgpt.generate(model, params, [prompt], 15, repetition_penalty=1.5)
        # Their text of a token begins with a space even if it continues a word, so the string has whole words.
        places = [place for place in range(5, 19) if whole[row[place - 1]] and whole[row[place]]]
        strings = ["fed cab", tokenizer.decode(row[places[1] - 1 : places[1] + 1].tolist())]
        options = {"repetition_penalty": 1.5, "stop_strings": strings}
        expected = theirs(reference, [prompt], 15, None, **options, tokenizer=their_tokenizer)
        (stopped,) = bertgpt.generate(model, params, [prompt], 15, **options, tokenizer=tokenizer)
        assert stopped.tolist() == expected.sequences[0].tolist()
        assert len(stopped) < 20


def byte_level():
    """Letters, the two bytes of é, and merged pieces."""
    symbols = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("a", "b"), ("b", "a"), ("ab", "a"), ("Ã", "©"), ("a", "Ã"), ("©", "b"), ("Ġ", "a")]
    for first, second in merges:
        symbols.setdefault(first + second, len(symbols))
    tokenizer = Tokenizer(models.BPE(symbols, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, [symbols[piece] for piece in ("a", "b", "Ġ", "Ã", "©", "ab", "ba", "aba", "Ã©", "aÃ", "©b", "Ġa")]


OURS, TOKENS = byte_level()
THEIRS = transformers.PreTrainedTokenizerFast(tokenizer_object=OURS)


@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=12), st.text("abé ", min_size=1, max_size=6))
def test_the_same_tokens_complete_a_string(ids, string):
    expected = StopStringCriteria(THEIRS, [string])
    ours = StopStrings([string], OURS)
    for size in range(1, len(ids) + 1):
        assert ours.end_at(ids[:size]) == bool(expected(torch.tensor([ids[:size]]), None)[0]), (ids[:size], string)


def shares(reference, prompts, options):
    """[B V]: the distribution of the next token that their `generate` samples from."""
    settings = {"temperature": 1.0} | options
    return torch.softmax(theirs(reference, prompts, 2, END, **settings).scores[0].double(), -1).numpy()


def joint(reference, options, ending=()):
    """[V V]: the distribution of two tokens after the prompt; after the end token or one of `ending`, the end token."""
    first = shares(reference, [PROMPT], options)[0]
    least = options.get("min_new_tokens", 1) - 1
    rest = {name: value for name, value in options.items() if name != "min_new_tokens"}
    rest |= {"min_new_tokens": least} if least > 0 else {}
    second = shares(reference, [[*PROMPT, token] for token in range(VOCAB)], rest)
    for token in (END, *ending):
        second[token] = np.arange(VOCAB) == END
    return first[:, None] * second


def p_value(tokens, distribution):
    """Of samples [N K] under a distribution with K axes; cells that expect fewer than five are counted as one."""
    cells = np.ravel_multi_index(np.asarray(tokens).T, distribution.shape)
    observed, expected = np.bincount(cells, minlength=distribution.size), len(cells) * distribution.reshape(-1)
    if observed[expected == 0].any():
        return 0.0
    order = np.argsort(expected)
    rare = 1 + max((expected < 5).sum(), np.searchsorted(np.cumsum(expected[order]), 5))
    pooled = ([x[order[:rare]].sum(), *x[order[rare:]]] for x in (observed, expected))
    return float(chisquare(*pooled).pvalue)


def sample(pair, options, prompts, **more):
    settings = {"temperature": 1.0, "key": jax.random.key(0), "end_id": END} | options | more
    return np.asarray(bertgpt.generate(pair[1], pair[2], np.array(prompts), 2, **settings))[:, len(prompts[0]) :]


@pytest.mark.parametrize("options", SAMPLED)
def test_samples_have_their_distribution(pair, options):
    tokens = sample(pair, options, [PROMPT] * ROWS)
    assert p_value(tokens, joint(pair[0], options)) > 1e-3
    for name in options:  # without one of the options, the distribution is another
        other = joint(pair[0], {key: value for key, value in options.items() if key != name})
        assert p_value(tokens, other) < 1e-3, name


def test_samples_end_at_a_stop_string_as_theirs(pair):
    reference, _, _, tokenizer, their_tokenizer = pair
    strings = [tokenizer.decode([token]) for token in (49, 22)]  # likely tokens that are whole words
    criteria = StopStringCriteria(their_tokenizer, strings)
    ending = [token for token in range(VOCAB) if criteria(torch.tensor([[*PROMPT, token]]), None)[0]]
    tokens = sample(pair, {}, [PROMPT] * ROWS, stop_strings=strings, tokenizer=tokenizer)
    assert p_value(tokens, joint(reference, {}, ending)) > 1e-3
    assert p_value(tokens, joint(reference, {})) < 1e-3


def test_several_samples_of_a_prompt_have_their_distribution(pair):
    other = [30, 31, 17, 3, 40]
    tokens = sample(pair, {"top_k": 9}, [other, PROMPT], num_return_sequences=ROWS)
    assert tokens.shape == (2 * ROWS, 2)
    expected = joint(pair[0], {"top_k": 9})
    assert p_value(tokens[ROWS:], expected) > 1e-3
    first = expected.sum(1)
    assert p_value(tokens[ROWS:, 0].reshape(-1, 2), first[:, None] * first) > 1e-3  # one after the other, independent
    assert p_value(tokens[:ROWS, :1], shares(pair[0], [other], {"top_k": 9})[0]) > 1e-3
