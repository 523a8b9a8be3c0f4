"""The log-probabilities of `bertgpt.score` are the losses of transformers."""

import numpy as np
import pytest
import torch
from reference import LENGTH, VOCAB, make_reference

import bertgpt
from bertgpt.tokenizers import train_bpe, train_wordpiece

TEXTS = ["ab ba abba", "a b", "baab ab abab baba ab"]


@pytest.mark.parametrize("name", ["OpenAIGPTLMHeadModel", "BertForMaskedLM", "BertForPreTraining"])
def test_scores_are_their_losses(name, tmp_path, measured):
    bert = name.startswith("Bert")
    tokenizer = (train_wordpiece if bert else train_bpe)(TEXTS * 9, 30)
    assert tokenizer.get_vocab_size() <= VOCAB
    reference = make_reference(name)
    reference.save_pretrained(tmp_path)
    model, params = bertgpt.load_pretrained(tmp_path)
    for found in bertgpt.score(model, params, tokenizer, TEXTS):
        assert 2 <= len(found.ids) <= 2 * LENGTH
        with torch.no_grad():
            expected = masked(reference, tokenizer, found.ids) if bert else causal(reference, found.ids)
        assert (
            measured(name, "losses of tokens", float(abs(found.log_probs[-len(expected) :] + expected).max())) <= 1e-5
        )


def causal(reference, ids: np.ndarray) -> np.ndarray:
    """The loss of each token after the first: the mean of the first n is the loss of n + 1 tokens."""
    ids = torch.tensor(ids[None].astype(np.int64))
    means = [float(reference(ids[:, : n + 1], labels=ids[:, : n + 1]).loss) for n in range(1, ids.shape[1])]
    return np.diff([0, *(mean * n for n, mean in enumerate(means, 1))])


def masked(reference, tokenizer, ids: np.ndarray) -> np.ndarray:
    """The loss of each token with this token masked."""
    whole = [tokenizer.token_to_id("[CLS]"), *ids.tolist(), tokenizer.token_to_id("[SEP]")]
    losses = []
    for place in range(1, len(whole) - 1):
        read, labels = torch.tensor([whole]), torch.full((1, len(whole)), -100)
        labels[0, place], read[0, place] = read[0, place].item(), tokenizer.token_to_id("[MASK]")
        logits = reference(read)[0][0]
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels[0])))
    return np.array(losses)
