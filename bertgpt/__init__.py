"""GPT-1 and BERT in JAX: modules and pure functions; no loop, no command line, no global state."""

from bertgpt import losses, masks, presets
from bertgpt.bert import BertForPreTraining, BertModel
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError
from bertgpt.generate import fill_mask, generate, next_sentence_probability
from bertgpt.gpt import OpenAIGPTLMHeadModel, OpenAIGPTModel
from bertgpt.outputs import ModelOutput
from bertgpt.tokenizers import load_tokenizer

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
