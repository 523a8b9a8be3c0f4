"""GPT-1's pretraining examples: windows over contiguous text."""

import functools

import numpy as np

from bertgpt.data.store import Split


class GptWindows:
    """Windows of T tokens of a split: row r is window r % len of epoch r // len.

    The text is a ring that each epoch enters at an offset of its own (0 in epoch 0), so that it is not always cut at
    the same places; an epoch predicts every token but its first once. `labels` are the tokens one to the right of
    `input_ids`: no shift is left to the loss.
    """

    def __init__(self, split: Split, sequence_length: int, seed: int) -> None:
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)

    def _make_plan(self, epoch: int) -> int:
        """The epoch's offset: the whole plan, since window i begins at offset + i T."""
        return int(np.random.default_rng([self.seed, epoch]).integers(len(self.split.tokens))) if epoch else 0

    def __len__(self) -> int:
        return max(1, -(-(len(self.split.tokens) - 1) // self.sequence_length))

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> `input_ids`, `labels` [B T] int32; `loss_mask` [B T] float32, 0 beyond the end of the epoch."""
        epochs, index = np.divmod(rows, len(self))
        offset = np.array([self.plan(int(epoch)) for epoch in epochs])
        place = (index * self.sequence_length)[:, None] + np.arange(self.sequence_length + 1)  # from the offset on
        tokens = self.split.tokens[(offset[:, None] + place) % len(self.split.tokens)].astype(np.int32)
        return {
            "input_ids": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": (place[:, 1:] < len(self.split.tokens)).astype(np.float32),
        }
