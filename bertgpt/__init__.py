"""GPT-1 and BERT in JAX: modules and pure functions; no loop, no command line, no global state.

Each name is imported when it is first used, so that what needs no JAX (the data pipeline, the command line's errors)
does not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertgpt import losses, presets
    from bertgpt.checkpoints.adapt import adapt, add_tokens
    from bertgpt.checkpoints.load import load_pretrained
    from bertgpt.checkpoints.save import save_pretrained
    from bertgpt.config import ModelConfig
    from bertgpt.data.tasks.task import TaskSettings
    from bertgpt.errors import InputError
    from bertgpt.inference.decoding import generate, stream
    from bertgpt.inference.embed import embed
    from bertgpt.inference.fill_mask import fill_mask, next_sentence_probability
    from bertgpt.inference.predict import predict
    from bertgpt.model import masks
    from bertgpt.model.bert import (
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from bertgpt.model.gpt import (
        OpenAIGPTDoubleHeadsModel,
        OpenAIGPTForSequenceClassification,
        OpenAIGPTLMHeadModel,
        OpenAIGPTModel,
    )
    from bertgpt.model.outputs import ModelOutput
    from bertgpt.tokenizers import load_tokenizer

_HOME = {
    "BertForMaskedLM": "model.bert",
    "BertForMultipleChoice": "model.bert",
    "BertForNextSentencePrediction": "model.bert",
    "BertForPreTraining": "model.bert",
    "BertForQuestionAnswering": "model.bert",
    "BertForSequenceClassification": "model.bert",
    "BertForTokenClassification": "model.bert",
    "BertModel": "model.bert",
    "InputError": "errors",
    "ModelConfig": "config",
    "ModelOutput": "model.outputs",
    "OpenAIGPTDoubleHeadsModel": "model.gpt",
    "OpenAIGPTForSequenceClassification": "model.gpt",
    "OpenAIGPTLMHeadModel": "model.gpt",
    "OpenAIGPTModel": "model.gpt",
    "TaskSettings": "data.tasks.task",
    "add_tokens": "checkpoints.adapt",
    "adapt": "checkpoints.adapt",
    "embed": "inference.fill_mask",
    "fill_mask": "inference.fill_mask",
    "generate": "inference.decoding",
    "load_pretrained": "checkpoints.load",
    "load_tokenizer": "tokenizers",
    "losses": None,
    "masks": None,
    "next_sentence_probability": "inference.fill_mask",
    "predict": "inference.predict",
    "presets": None,
    "save_pretrained": "checkpoints.load",
    "stream": "inference.decoding",
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
