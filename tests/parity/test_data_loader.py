"""PyTorch reads our sources of examples as they are."""

import numpy as np
import torch

from bertgpt import data
from bertgpt.tokenizers import train_wordpiece


def test_a_data_loader_reads_an_epoch_and_a_subset_the_next(tmp_path):
    words = ["".join(pair) for pair in np.random.default_rng(0).choice(list("abcdefgh"), (200, 2))]
    texts = [" ".join(words[start : start + 20]) + "." for start in range(0, 200, 5)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    tokenizer = train_wordpiece(texts, 100)
    splits = data.make_store(
        tmp_path / "store", data.TextSource(str(tmp_path / "text.txt"), eval_fraction=0.2), tokenizer
    )
    source = data.SentenceRuns(splits["train"], tokenizer, 16, 0)
    count = len(source)
    second = torch.utils.data.Subset(source, range(count, 2 * count))
    for first_row, given in ((0, source), (count, second)):
        batches = list(torch.utils.data.DataLoader(given, batch_size=4))
        expected = source.batch(np.arange(first_row, first_row + count))
        for name, value in expected.items():
            found = torch.cat([batch[name] for batch in batches])
            assert torch.equal(found, torch.from_numpy(value)), name
