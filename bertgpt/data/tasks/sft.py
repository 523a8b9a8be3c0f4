"""Prompts with responses for GPT-1, and conversations. Only the tokens of responses count in the loss."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example
from bertgpt.data.tasks.templates import SequenceTemplate
from bertgpt.errors import InputError, quoted

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """A message of a conversation; `spoken` is True for the assistant's messages, whose tokens are learned."""

    text: str
    spoken: bool


@dataclasses.dataclass(frozen=True)
class Responses:
    """start prompt delimiter response end; the further turns of a conversation end with `middle` or `end` too.

    Attributes:
        template: its `middle` ends what the model reads, its `end` what the assistant says.
        prompt: the column of the prompt.
        response: the column of the response.
        messages: the column of a conversation, a list of {"role", "content"}. If a row has it, its prompt and response
            are ignored.
        cut: True: a row that is too long loses the beginning of its prompt. False: it is skipped.
    """

    template: SequenceTemplate
    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    cut: bool = True
    per_token: tuple[str, ...] = ("input_ids", "attention_mask", "labels", "loss_mask")
    info = None

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The texts of all turns."""
        return [turn.text for turn in self.turns(row, labelled)]

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """One feature, or none if the row is too long and cannot, or must not, be truncated.

        `labels` int32 [T'] are the next tokens; `loss_mask` float32 [T'] is 1 if the next token is in a response or
        ends one. If not `labelled`, the feature is `input_ids` up to where the response begins.
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
            if counts[1]:  # a response that lost its beginning does not count
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
        """All tokens, and whether each is learned."""
        ids, counts = [self.template.start], [False]
        for turn in turns:
            text = self.template.content(row, turn.text)
            ids += [*text, self.template.end if turn.spoken else self.template.middle]
            counts += [turn.spoken] * (len(text) + 1)
        return ids, counts

    def turns(self, row: Row, labelled: bool = True) -> list[Turn]:
        """The row's turns; without the last response if not `labelled`.

        Raises:
            InputError: a column is missing or empty; a message has an unknown role or no text; a conversation begins
                with the assistant's message, has none to learn from, or has no message to answer.
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
            raise InputError(f"{row.place}: no message of role 'assistant' to learn from; add one")
        if labelled and turns[0].spoken:
            raise InputError(f"{row.place}: message 1 has role 'assistant'; begin with the message that it answers")
        while not labelled and turns and turns[-1].spoken:  # this is predicted
            turns.pop()
        if not turns:
            raise InputError(f"{row.place}: no message to answer; give one of role 'user'")
        return turns

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Raises InputError: responses are generated token by token, not decoded from one forward pass."""
        raise InputError("responses are generated token by token; use bertgpt.inference.predict.respond")


def _turn(row: Row, number: int, message: dict[str, Any]) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"{row.place}: message {number} has role {quoted(role)}; choose one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{row.place}: message {number} has no text under 'content'")
    return Turn(content, role == "assistant")
