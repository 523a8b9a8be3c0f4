"""WordPiece for BERT and BPE with `</w>` for GPT-1, on the Hugging Face tokenizers library."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL = ("<unk>",)
MERGES = {"vocab.json": "merges.txt", "encoder_bpe_40000.json": "vocab_40000.bpe"}  # Hugging Face's names, OpenAI's
SETTINGS = {  # tokenizer_config.json's words for BERT's clean-up, and the normalizer's
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
MAX_FILE = 1 << 28  # bytes of a tokenizer's file


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer with BERT's clean-up, learnt from a stream of texts; [PAD] is 0.

    Args:
        texts: read once, never held together.
        vocab_size: at most this many pieces, the five special ones included.
        lowercase: lower-case and strip accents, as the uncased models do.
    """
    tokenizer = _wordpiece(models.WordPiece(unk_token="[UNK]"), lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(BERT_SPECIAL),
        limit_alphabet=_alphabet(vocab_size),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _add_bert_template(tokenizer)
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-casing BPE tokenizer whose words end in `</w>`, learnt from a stream of texts; `<unk>` is 0."""
    tokenizer = _bpe(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(GPT_SPECIAL),
        limit_alphabet=_alphabet(vocab_size),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file (`tokenizer.json`, `vocab.txt`) or folder (those, or `vocab.json` + `merges.txt`, or
    OpenAI's `encoder_bpe_40000.json` + `vocab_40000.bpe`).

    A `tokenizer_config.json` beside it that is a BERT's decides lower case, Chinese characters and accents, with
    Hugging Face's defaults for what it leaves out; a `vocab.txt` without it is lower-cased.

    Raises:
        InputError: there is no tokenizer, or its file cannot be used.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = ("tokenizer.json", "vocab.txt", *MERGES) if path.is_dir() else (path.name,)
    for file in (folder / name for name in names):
        if file.is_file():
            tokenizer = _load_file(file, _read_settings(folder))
            tokenizer.no_padding()  # lengths are this library's to decide
            tokenizer.no_truncation()
            return tokenizer
    raise InputError(f"{path}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json` into the folder."""
    (Path(folder) / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def export_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes Hugging Face's files: tokenizer.json, tokenizer_config.json, and vocab.txt or vocab.json + merges.txt.

    Their BertTokenizer and OpenAIGPTTokenizer build their own clean-up from the last; a tokenizer that has another is
    described by tokenizer.json alone.

    Args:
        tokenizer: any.
        folder: exists.
        max_length: the model's positions.
    """
    save_tokenizer(tokenizer, folder)
    description = json.loads(tokenizer.to_str())
    model, normalizer = description["model"], description["normalizer"] or {}
    settings: dict[str, Any] = {"model_max_length": max_length}
    if _is_berts(description):
        settings |= {"tokenizer_class": "BertTokenizer"}
        settings |= {theirs: normalizer[ours] for theirs, ours in SETTINGS.items()}
        settings |= {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIAL}
        names = {index: piece for piece, index in tokenizer.get_vocab().items()}
        pieces = (names.get(index, f"[unused_id_{index}]") for index in range(vocabulary_size(tokenizer)))
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    elif _is_gpts(description):
        settings |= {"tokenizer_class": "OpenAIGPTTokenizer", "unk_token": model["unk_token"]}
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        _write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    else:
        special = [token for token in (*GPT_SPECIAL, *BERT_SPECIAL) if tokenizer.token_to_id(token) is not None]
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= {f"{token[1:-1].lower()}_token": token for token in special}
    _write_json(folder / "tokenizer_config.json", settings)


def _is_berts(description: dict[str, Any]) -> bool:
    """Whether their BertTokenizer would be the same, given the vocabulary and SETTINGS."""
    model, normalizer = description["model"], description["normalizer"] or {}
    wanted = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return (
        model | wanted | {"max_input_chars_per_word": 100} == model
        and normalizer | {"type": "BertNormalizer", "clean_text": True} == normalizer
        and description["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and all(token in model["vocab"] for token in BERT_SPECIAL)
    )


def _is_gpts(description: dict[str, Any]) -> bool:
    """Whether their OpenAIGPTTokenizer would be the same, given vocabulary and merges."""
    model = description["model"]
    wanted = {"type": "BPE", "unk_token": "<unk>", "end_of_word_suffix": "</w>", "fuse_unk": False, "dropout": None}
    cleaned = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return (
        model | wanted == model
        and not model["continuing_subword_prefix"]
        and description["normalizer"] == {"type": "BertNormalizer", **cleaned}
        and description["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and description["post_processor"] is None
    )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id. Ids may have holes: a vocab.txt with the same line twice makes one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token.

    Raises:
        InputError: the vocabulary lacks it.
    """
    index = tokenizer.token_to_id(token)
    if index is None:
        needs = f"BERT needs {', '.join(BERT_SPECIAL)}" if token in BERT_SPECIAL else "fine-tuning adds it"
        raise InputError(f"the tokenizer has no {token}; {needs}")
    return index


def continuation_table(tokenizer: Tokenizer) -> list[bool]:
    """For every id, whether the piece goes on a word (`##`); for whole-word masking."""
    return [(tokenizer.id_to_token(index) or "").startswith("##") for index in range(vocabulary_size(tokenizer))]


def _alphabet(vocab_size: int) -> int:
    """Single characters kept: enough for Chinese in a large vocabulary, without rare scripts filling a small one."""
    return max(1000, vocab_size // 4)


def _wordpiece(model: models.WordPiece, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # strips accents where it lower-cases
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _add_bert_template(tokenizer: Tokenizer) -> None:
    """[CLS] A [SEP], segment 0; then B [SEP], segment 1."""
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", special_id(tokenizer, "[SEP]")), ("[CLS]", special_id(tokenizer, "[CLS]"))
    )


def _bpe(model: models.BPE) -> Tokenizer:
    """The clean-up that Hugging Face uses for GPT-1 without ftfy and spaCy."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def _read_settings(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says of BERT's clean-up, in the words of the normalizer; nothing without it."""
    file = folder / "tokenizer_config.json"
    config = read_json_object(file) if file.is_file() else {"tokenizer_class": "none"}
    if "Bert" not in str(config.get("tokenizer_class") or "BertTokenizer"):
        return {}
    for key in SETTINGS:
        if not isinstance(config.get(key), bool | None):
            raise InputError(f"{file}: {key} is {config[key]!r}; it must be true or false")
    lowercase, characters = (config.get(key) is not False for key in ("do_lower_case", "tokenize_chinese_chars"))
    return {
        "lowercase": lowercase,
        "handle_chinese_chars": characters,
        "strip_accents": config.get("strip_accents"),
    }


def _load_file(file: Path, settings: dict[str, Any]) -> Tokenizer:
    if file.stat().st_size > MAX_FILE:
        raise InputError(f"{file}: over {MAX_FILE} bytes; not a tokenizer")
    try:
        if file.name == "vocab.txt":
            return _from_vocab_txt(file, settings)
        if file.name in MERGES:
            return _from_merges(file)
        return _with_settings(Tokenizer.from_file(str(file)), settings)
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, or Rust's panic, which is none
        raise InputError(f"{file}: not a tokenizer: {error}") from error


def _with_settings(tokenizer: Tokenizer, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer, its BERT clean-up changed where the settings say otherwise."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    if normalizer.pop("type", None) == "BertNormalizer" and normalizer | settings != normalizer:
        tokenizer.normalizer = normalizers.BertNormalizer(**normalizer | settings)
    return tokenizer


def _from_vocab_txt(file: Path, settings: dict[str, Any]) -> Tokenizer:
    pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = _with_settings(_wordpiece(models.WordPiece(vocabulary, unk_token="[UNK]"), True), settings)
    for token in BERT_SPECIAL:
        special_id(tokenizer, token)
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    _add_bert_template(tokenizer)
    return tokenizer


def _from_merges(file: Path) -> Tokenizer:
    merges = file.with_name(MERGES[file.name])
    if not merges.is_file():
        raise InputError(f"{file}: needs {merges.name} beside it")
    model = models.BPE.from_file(str(file), str(merges), unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = _bpe(model)
    tokenizer.add_special_tokens(list(GPT_SPECIAL))
    return tokenizer
