"""Strict settings and the small things that many tests share."""

import json
import os

from quick import QUICK

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that looks a name up does so in a subprocess

import hypothesis
import jax
import numpy as np
import pytest
import yaml
from model_folders import make

import bertgpt
from bertgpt.data.text import store
from bertgpt.data.text.text_source import TextSource
from bertgpt.tokenizers import train_bpe, train_wordpiece
from train import config as configs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)  # most of the tests' time is compilation
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hypothesis.settings.register_profile("repo", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("repo")

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 32, "max_positions": 32, "vocab_size": 64}


def pytest_configure(config: pytest.Config) -> None:
    """Programs that several tests compile are compiled once, also from one session to the next."""
    folder = str(config.cache.mkdir("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """120 documents of 2 to 7 sentences, each about words of its own."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 8))) for _ in range(300)]
    topics = [rng.choice(words, 12) for _ in range(120)]
    return [
        " ".join(" ".join(rng.choice(topic, rng.integers(4, 12))).capitalize() + "." for _ in range(rng.integers(2, 8)))
        for topic in topics
    ]


@pytest.fixture(scope="session")
def corpus_file(documents, tmp_path_factory):
    """The documents as JSONL."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def wordpiece(documents):
    return train_wordpiece(documents, 200)


@pytest.fixture(scope="session")
def bpe(documents):
    return train_bpe(documents, 200)


@pytest.fixture(scope="session")
def bert_split(corpus_file, wordpiece, tmp_path_factory):
    """The training split of a WordPiece store."""
    folder = tmp_path_factory.mktemp("store") / "wordpiece"
    store.prepare(folder, TextSource(str(corpus_file), eval_fraction=0.1), wordpiece, {})
    return store.open_split(folder, "train")


@pytest.fixture(scope="session")
def gpt_split(corpus_file, bpe, tmp_path_factory):
    """The training split of a BPE store."""
    folder = tmp_path_factory.mktemp("store") / "bpe"
    store.prepare(folder, TextSource(str(corpus_file), eval_fraction=0.1), bpe, {})
    return store.open_split(folder, "train")


@pytest.fixture(scope="session")
def tiny_bert():
    return bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**TINY))


@pytest.fixture(scope="session")
def tiny_gpt():
    return bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**TINY))


@pytest.fixture
def plan_settings(tmp_path):
    """(preset, overrides) -> the configuration of a run, and its file; the text that it names does not exist."""

    def make(preset, *overrides):
        values = {"model": {"preset": preset, **TINY}, "data": {"train": "text", "sequence_length": 16}}
        values |= {"train": {"batch_size": 16}, "tokenizer": {"vocab_size": 64}, "out": str(tmp_path / "out")}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return configs.load(str(path), overrides), path

    return make


@pytest.fixture
def saved(tmp_path):
    """name -> (folder, model, params), written."""

    def save(name):
        model, params = make(name)
        bertgpt.save_pretrained(tmp_path / name, model, params)
        return tmp_path / name, model, params

    return save
