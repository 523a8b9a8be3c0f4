"""GPT-1 and BERT in JAX: modules and pure functions; no loop, no command line, no global state.

Each name is imported when it is first used, so that what needs no JAX (the data pipeline, the command line's errors)
does not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertgpt import losses, masks, presets
    from bertgpt.bert import BertForPreTraining, BertModel
    from bertgpt.config import ModelConfig
    from bertgpt.errors import InputError
    from bertgpt.gpt import OpenAIGPTLMHeadModel, OpenAIGPTModel
    from bertgpt.inference import fill_mask, generate, next_sentence_probability
    from bertgpt.outputs import ModelOutput
    from bertgpt.tokenizers import load_tokenizer

_HOME = {
    "BertForPreTraining": "bert",
    "BertModel": "bert",
    "InputError": "errors",
    "ModelConfig": "config",
    "ModelOutput": "outputs",
    "OpenAIGPTLMHeadModel": "gpt",
    "OpenAIGPTModel": "gpt",
    "fill_mask": "inference",
    "generate": "inference",
    "load_tokenizer": "tokenizers",
    "losses": None,
    "masks": None,
    "next_sentence_probability": "inference",
    "presets": None,
}  # None: a module itself

__all__ = [
    "BertForPreTraining",
    "BertModel",
    "InputError",
    "ModelConfig",
    "ModelOutput",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "fill_mask",
    "generate",
    "load_tokenizer",
    "losses",
    "masks",
    "next_sentence_probability",
    "presets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bertgpt' has no attribute {name!r}")
    home = importlib.import_module(f"bertgpt.{_HOME[name] or name}")
    return getattr(home, name) if _HOME[name] else home
