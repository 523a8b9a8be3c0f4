"""Prompts with responses for GPT-1, and conversations: the loss counts what the model is to say, and nothing else."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example
from bertgpt.data.tasks.templates import SequenceTemplate
from bertgpt.errors import InputError

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """A part of a conversation; `spoken`: by the assistant, whose words are learnt."""

    text: str
    spoken: bool


@dataclasses.dataclass(frozen=True)
class Responses:
    """start prompt delimiter response end; a conversation goes on with further turns, each ended by its own token.

    Attributes:
        frame: its `middle` ends what the model reads, its `end` what it says.
        prompt: the column of the prompt.
        response: the column of the response.
        messages: the column of a conversation, a list of {"role", "content"}; a row that has it is one.
        cut: an over-long row loses the beginning of its prompt; False: it is left out.
    """

    template: SequenceTemplate
    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    cut: bool = True
    per_token: tuple[str, ...] = ("input_ids", "attention_mask", "labels", "loss_mask")

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """`labels` int32 [T'] are the next tokens; `loss_mask` float32 [T'] is 1 where those are a response's or its
        end. A row that cannot be shortened, or is not to be, has no feature.

        Not `labelled`: `input_ids` up to the place where the response would begin.
        """
        ids, counts = self._tokens(row, self.turns(row, labelled))
        if not labelled:
            return Example(row, [{"input_ids": np.array(ids, np.int32)}])
        last = len(counts) - counts[::-1].index(True)  # what follows the last response is not needed
        ids, counts = ids[:last], counts[:last]
        excess = len(ids) - (self.template.length + 1)
        begin = max(index for index, counted in enumerate(counts) if not counted)  # the delimiter before it
        if excess > 0 and (not self.cut or 1 + excess > begin):
            return Example(row, [], cut=True)
        if excess > 0:
            ids, counts = [ids[0], *ids[1 + excess :]], [False, *counts[1 + excess :]]
            if counts[1]:  # the rest of a response whose beginning is gone is no response
                first = counts.index(False, 1)
                counts[:first] = [False] * first
        feature = {
            "input_ids": np.array(ids[:-1], np.int32),
            "attention_mask": np.ones(len(ids) - 1, np.int32),
            "labels": np.array(ids[1:], np.int32),
            "loss_mask": np.array(counts[1:], np.float32),
        }
        return Example(row, [feature], cut=excess > 0)

    def _tokens(self, row: Row, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """Every token, and whether it is learnt."""
        ids, counts = [self.template.start], [False]
        for turn in turns:
            text = self.template.content(row, turn.text)
            ids += [*text, self.template.end if turn.spoken else self.template.middle]
            counts += [turn.spoken] * (len(text) + 1)
        return ids, counts

    def turns(self, row: Row, labelled: bool = True) -> list[Turn]:
        """The row's turns; for a prediction without the response.

        Raises:
            InputError: a column is missing or empty, a message has no role or text, or nobody answers.
        """
        if row.values.get(self.messages) is not None:
            return self._conversation(row, labelled)
        prompt = [Turn(row.text(self.prompt, "task.prompt"), False)]
        return [*prompt, Turn(row.text(self.response, "task.response"), True)] if labelled else prompt

    def _conversation(self, row: Row, labelled: bool) -> list[Turn]:
        messages = row.get(self.messages, "task.messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise InputError(f'{row.place}: messages must be a list of {{"role": ..., "content": ...}}')
        turns = [_turn(row, number, message) for number, message in enumerate(messages, 1)]
        if labelled and not any(turn.spoken for turn in turns):
            raise InputError(f"{row.place}: no message of role 'assistant', whose words are to be learnt; add one")
        if labelled and turns[0].spoken:
            raise InputError(f"{row.place}: message 1 is the assistant's; begin with what it answers to")
        while not labelled and turns and turns[-1].spoken:  # what is to be predicted
            turns.pop()
        if not turns:
            raise InputError(f"{row.place}: no message to answer; give one of role 'user'")
        return turns

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Responses are generated token by token, and not decoded from one pass."""
        raise InputError("a language model's responses are written by bertgpt.inference.predict.respond")


def _turn(row: Row, number: int, message: dict[str, Any]) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"{row.place}: message {number} has role {role!r}; choose one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{row.place}: message {number} has no text under 'content'")
    return Turn(content, role == "assistant")
