"""GPT-1 and BERT in JAX: modules and pure functions; no loop, no command line, no global state.

Each name is imported when it is first used, so that what needs no JAX (the data pipeline, the command line's errors)
does not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertgpt import losses, masks, presets
    from bertgpt.adapt import adapt, add_tokens
    from bertgpt.bert import (
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from bertgpt.config import ModelConfig
    from bertgpt.data.task import TaskSettings
    from bertgpt.decoding import generate, stream
    from bertgpt.errors import InputError
    from bertgpt.gpt import (
        OpenAIGPTDoubleHeadsModel,
        OpenAIGPTForSequenceClassification,
        OpenAIGPTLMHeadModel,
        OpenAIGPTModel,
    )
    from bertgpt.inference import embed, fill_mask, next_sentence_probability
    from bertgpt.outputs import ModelOutput
    from bertgpt.pretrained import load_pretrained, save_pretrained
    from bertgpt.tasks import predict
    from bertgpt.tokenizers import load_tokenizer

_HOME = {
    "BertForMaskedLM": "bert",
    "BertForMultipleChoice": "bert",
    "BertForNextSentencePrediction": "bert",
    "BertForPreTraining": "bert",
    "BertForQuestionAnswering": "bert",
    "BertForSequenceClassification": "bert",
    "BertForTokenClassification": "bert",
    "BertModel": "bert",
    "InputError": "errors",
    "ModelConfig": "config",
    "ModelOutput": "outputs",
    "OpenAIGPTDoubleHeadsModel": "gpt",
    "OpenAIGPTForSequenceClassification": "gpt",
    "OpenAIGPTLMHeadModel": "gpt",
    "OpenAIGPTModel": "gpt",
    "TaskSettings": "data.task",
    "add_tokens": "adapt",
    "adapt": "adapt",
    "embed": "inference",
    "fill_mask": "inference",
    "generate": "decoding",
    "load_pretrained": "pretrained",
    "load_tokenizer": "tokenizers",
    "losses": None,
    "masks": None,
    "next_sentence_probability": "inference",
    "predict": "tasks",
    "presets": None,
    "save_pretrained": "pretrained",
    "stream": "decoding",
}  # None: a module itself

__all__ = [
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "InputError",
    "ModelConfig",
    "ModelOutput",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "TaskSettings",
    "adapt",
    "add_tokens",
    "embed",
    "fill_mask",
    "generate",
    "load_pretrained",
    "load_tokenizer",
    "losses",
    "masks",
    "next_sentence_probability",
    "predict",
    "presets",
    "save_pretrained",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bertgpt' has no attribute {name!r}")
    home = importlib.import_module(f"bertgpt.{_HOME[name] or name}")
    return getattr(home, name) if _HOME[name] else home
