"""Checkpoints of google-research/bert: their outputs, what is read from a training folder, and damaged files."""

import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tensor_bundles
from hypothesis import given
from hypothesis import strategies as st
from model_folders import assert_equal
from safetensors.numpy import load_file

import bertgpt
from bertgpt.checkpoints.formats.google_bert import open_tensors
from bertgpt.checkpoints.formats.tensor_bundle import open_bundle
from bertgpt.errors import InputError
from train.__main__ import main

GOLDENS = Path(__file__).parent / "goldens" / "google"
INDEX, DATA = "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"
LAYER = "bert/encoder/layer_0/output/dense/kernel"
FIELDS = ("pooler_output", "logits", "start_logits", "end_logits")
UNUSED_POOLER = pytest.mark.filterwarnings("ignore:.*does not use bert.pooler.dense")


@pytest.fixture
def golden(tmp_path):
    """name -> a copy of a golden folder."""
    return lambda name: Path(shutil.copytree(GOLDENS / name, tmp_path / name))


def run(folder, name, architecture=None):
    """(model, {output: ours}, {output: TensorFlow's}, attention mask) for the inputs of a golden folder."""
    arrays = load_file(GOLDENS / name / "expected.safetensors")
    inputs = {key.removeprefix("input/"): value for key, value in arrays.items() if key.startswith("input/")}
    wanted = {key.removeprefix("output/"): value for key, value in arrays.items() if key.startswith("output/")}
    model, params = bertgpt.load_pretrained(folder, architecture)
    places = ("masked_positions",) if type(model).__name__ == "BertForPreTraining" else ()
    batch = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids", *places)}
    output = model.apply({"params": params}, **batch, output_hidden_states=True)
    found = {f"hidden_states/{layer}": x for layer, x in enumerate(output.hidden_states)}
    found |= {name: getattr(output, name, None) for name in FIELDS}
    if places:
        found["mlm_log_probabilities"] = jax.nn.log_softmax(output.mlm_logits)
        found["nsp_log_probabilities"] = jax.nn.log_softmax(output.nsp_logits)
    return model, found, wanted, inputs["attention_mask"]


def largest_difference(found, wanted, mask):
    """At real positions, over all outputs of TensorFlow."""
    differences = []
    for key, value in wanted.items():
        real = mask.astype(bool) if value.shape[:2] == mask.shape else slice(None)
        differences.append(np.abs(np.asarray(found[key]).reshape(value.shape)[real] - value[real]).max())
    return max(differences)


def change_config(folder, **values):
    file = folder / "bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "architecture", "count"),
    [
        ("pretraining", "BertForPreTraining", 6),
        ("training", "BertForPreTraining", 6),
        ("classifier", "BertForSequenceClassification", 1),
        ("shards", "BertModel", 4),
    ],
)
def test_outputs_are_those_of_googles_code(name, architecture, count):
    model, found, wanted, mask = run(GOLDENS / name, name)
    assert (type(model).__name__, len(wanted)) == (architecture, count)
    assert largest_difference(found, wanted, mask) < 1e-5


@UNUSED_POOLER
def test_answers_are_those_of_googles_code_with_its_form_of_gelu(golden):
    """squad was computed with the tanh form of today's code; "gelu" in a configuration is the erf form."""
    folder = golden("squad")
    model, found, wanted, mask = run(folder, "squad")
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert 1e-4 < largest_difference(found, wanted, mask) < 1e-3
    change_config(folder, hidden_act="gelu_new")
    _, found, wanted, mask = run(folder, "squad")
    assert largest_difference(found, wanted, mask) < 1e-5


@UNUSED_POOLER
def test_another_class_is_loaded_when_it_is_named():
    model, _ = bertgpt.load_pretrained(GOLDENS / "classifier", "BertForTokenClassification")
    assert model.config.num_labels == 3
    with pytest.warns(UserWarning, match=r"does not use cls\.predictions\.bias"):
        bertgpt.load_pretrained(GOLDENS / "pretraining", "BertModel")


def test_masked_tokens_without_pairs_are_a_masked_language_model(tmp_path):
    opened = open_bundle(GOLDENS / "pretraining" / INDEX)
    kept = {name: tensor.read() for name, tensor in opened.items() if "seq_relationship" not in name}
    del kept["bert/pooler/dense/kernel"], kept["bert/pooler/dense/bias"]
    tensor_bundles.write(tmp_path / "bert_model.ckpt", kept)
    shutil.copy(GOLDENS / "pretraining" / "bert_config.json", tmp_path)
    model, params = bertgpt.load_pretrained(tmp_path)
    assert type(model).__name__ == "BertForMaskedLM"
    np.testing.assert_array_equal(params["mlm_head"]["bias"], kept["cls/predictions/output_bias"])


def test_a_training_folder_gives_the_checkpoint_that_it_names_or_the_newest(golden):
    folder = golden("training")
    second = bertgpt.load_pretrained(folder)[1]
    (folder / "checkpoint").unlink()
    assert_equal(bertgpt.load_pretrained(folder)[1], second)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"\n')
    first = bertgpt.load_pretrained(folder)[1]
    assert not np.array_equal(first["mlm_head"]["bias"], second["mlm_head"]["bias"])
    for number in (1, 2):  # steps are compared as numbers
        for file in folder.glob(f"model.ckpt-{number}.*"):
            file.rename(folder / file.name.replace(f"-{number}.", f"-{11 - number}."))
    (folder / "checkpoint").unlink()
    assert_equal(bertgpt.load_pretrained(folder)[1], first)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../training/model.ckpt-2", r"names '\.\./training/model\.ckpt-2', which is not a checkpoint in its folder"),
        ("/etc/model.ckpt-2", r"names '/etc/model\.ckpt-2', which is not .* such as model\.ckpt-2, or delete the file"),
        ("model.ckpt-3", "names 'model.ckpt-3', which is not a checkpoint in its folder"),
        ("", "names '', which is not"),
    ],
)
def test_a_checkpoint_outside_its_folder_is_not_read(golden, named, message):
    folder = golden("training")
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    with pytest.raises(InputError, match=message):
        bertgpt.load_pretrained(folder)


def test_a_folder_without_one_checkpoint_is_refused(golden):
    folder = golden("pretraining")
    for file in (INDEX, DATA):
        shutil.copy(folder / file, folder / file.replace("bert_model.ckpt", "model.ckpt-7"))
    with pytest.raises(InputError, match=r"contains several checkpoints, bert_model\.ckpt and model\.ckpt-7; move"):
        bertgpt.load_pretrained(folder)
    for file in folder.glob("*.index"):
        file.unlink()
    with pytest.raises(InputError, match=r"contains no checkpoint; add bert_model\.ckpt\.index and its data files"):
        bertgpt.load_pretrained(folder)


def test_a_checkpoint_without_its_configuration_is_refused(golden):
    folder = golden("pretraining")
    (folder / "bert_config.json").unlink()
    with pytest.raises(InputError, match=r"bert_config\.json: no such file; copy the one that the checkpoint"):
        bertgpt.load_pretrained(folder)


def test_a_folder_with_a_config_json_is_hugging_faces(golden):
    folder = golden("pretraining")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="contains no weights; add model.safetensors"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 3}, r"bert_config\.json: needs 3 layers, more than .*; use the bert_config\.json that"),
        ({"hidden_size": 16}, r"embeddings\.weight has shape \(32, 8\), and a BertForPreTraining needs \(32, 16\)"),
        ({"num_attention_heads": 3}, r"bert_config\.json: "),
        ({"hidden_act": "tanh"}, r"bert_config\.json: activation 'tanh' is unknown"),
        ({"model_type": "albert"}, r"bert_config\.json: model_type 'albert' is not supported"),
        ({"vocab_size": "32"}, r"bert_config\.json: vocab_size is '32'; it must be a whole number"),
    ],
)
def test_a_configuration_that_does_not_belong_to_the_checkpoint_is_refused(golden, values, message):
    folder = golden("pretraining")
    change_config(folder, **values)
    with pytest.raises(InputError, match=message):
        bertgpt.load_pretrained(folder)


def test_segments_that_are_not_configured_are_sixteen_as_in_googles_code(golden):
    folder = golden("pretraining")
    config = json.loads((folder / "bert_config.json").read_text())
    del config["type_vocab_size"]
    (folder / "bert_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"token_type_embeddings\.weight has shape \(2, 8\), and .* needs \(16, 8\)"):
        bertgpt.load_pretrained(folder)


def test_another_models_checkpoint_is_refused(golden):
    folder = golden("pretraining")
    inner = "bert/encoder/transformer/group_0/inner_group_0/attention_1/self/key/kernel"  # ALBERT's
    tensor_bundles.write(folder / "bert_model.ckpt", {inner: np.zeros((8, 8), np.float32)})
    with pytest.raises(
        InputError, match=r"not a checkpoint of Google's BERT: it has no bert/encoder/layer_0/\.\.\., but"
    ):
        bertgpt.load_pretrained(folder)


def test_the_files_of_tensorflow_are_read():
    wanted = load_file(GOLDENS / "kinds" / "expected.safetensors")
    found = open_bundle(GOLDENS / "kinds" / "kinds.ckpt.index")
    assert found.keys() == wanted.keys() | {"bfloat16", "int64", "string", "partitioned"}
    for name, value in wanted.items():
        assert (found[name].shape, found[name].read().dtype) == (value.shape, np.float32)
        assert found[name].dtype == value.dtype.name
        np.testing.assert_array_equal(found[name].read(), value.astype(np.float32))
    np.testing.assert_allclose(found["bfloat16"].read(), wanted["float32"], rtol=2**-8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int64", "int64 has dtype int64; it must be float32, float64, float16 or bfloat16"),
        ("string", "string has dtype string; it must be"),
        ("partitioned", "partitioned is a partitioned variable, stored in 2 slices; save it whole"),
    ],
)
def test_what_is_not_a_whole_floating_point_tensor_is_refused_when_it_is_read(name, message):
    with pytest.raises(InputError, match=f"kinds.ckpt.data-00000-of-00001: {message}"):
        open_bundle(GOLDENS / "kinds" / "kinds.ckpt.index")[name].read()


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_index_of_several_blocks_is_read(tmp_path, blocks):
    arrays = tensor_bundles.odd_floats()
    tensor_bundles.write(tmp_path / "a.ckpt", arrays, blocks=blocks)
    found = open_bundle(tmp_path / "a.ckpt.index")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array.astype(np.float32))


ARRAY = np.ones((2, 3), np.float32)
ODD_ENTRIES = [
    ({"dtype": 7}, r"a has dtype string; it must be"),
    ({"dtype": 99}, r"a has dtype number 99; it must be"),
    ({"shape": (2, 2)}, r"a has 24 bytes, which do not fit its shape \(2, 2\)"),
    ({"shape": (2**63, 2**63)}, r"a has 24 bytes, which do not fit its shape"),
    ({"shape": (1,) * 9}, "an entry is incomplete"),
    ({"size": 2**62}, r"a\.ckpt\.data-00000-of-00001: too short for a"),
    ({"shard": 1}, "it has 1 data files, and names number 1"),
    ({"slices": 2}, "a is a partitioned variable, stored in 2 slices"),
]


@pytest.mark.parametrize(("changes", "message"), ODD_ENTRIES)
def test_an_odd_entry_is_refused_before_memory_is_allocated(tmp_path, changes, message):
    tensor_bundles.write(tmp_path / "a.ckpt", {"a": ARRAY}, a=changes)
    with pytest.raises(InputError, match=message):
        open_bundle(tmp_path / "a.ckpt.index")["a"].read()


def index_of(*blocks, **options):
    return tensor_bundles.table(*(tensor_bundles.block(records) for records in blocks), **options)


HEADER = (b"", tensor_bundles.header())
ENTRY = tensor_bundles.entry(ARRAY, 0)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (index_of([HEADER, (b"a", ENTRY)], kind=1), r"its blocks are compressed \(type 1\), which is not supported"),
        (index_of([(b"", tensor_bundles.header(endianness=1))]), "its numbers are big-endian, which is not supported"),
        (index_of([(b"a", ENTRY)]), "it has no header"),
        (index_of([HEADER, (b"b", ENTRY), (b"a", ENTRY)]), "its names are not in order"),
        (index_of([HEADER], [HEADER]), "its names are not in order"),
        (index_of([HEADER, (b"\xff", ENTRY)]), "is not a name"),
        (index_of([HEADER, (b"a" * 1001, ENTRY)]), "an entry lies outside its block"),
        (index_of([HEADER, (b"a", ENTRY[:-1])]), "an entry is incomplete"),
        (index_of([HEADER, *((b"%06d" % number, b"") for number in range(20_001))]), "over 20000 tensors, too many"),
        (tensor_bundles.table(b"\5\0\0" + bytes(8)), "an entry lies outside its block"),
        (tensor_bundles.table(bytes(7)), "a block lies outside the file"),
        (tensor_bundles.table(bytes(4) + b"\xff" * 4), "a block has no place for its entries"),
        (tensor_bundles.table(tensor_bundles.END), "it has no header"),
        (b"", "it does not end as one"),
        (bytes(2**22 + 1), "over 4194304 bytes, too large for the index of a BERT"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_an_odd_index_is_refused(tmp_path, index, message):
    (tmp_path / "a.ckpt.index").write_bytes(index)
    (tmp_path / "a.ckpt.data-00000-of-00001").write_bytes(ARRAY.tobytes())
    with pytest.raises(InputError, match=message):
        open_bundle(tmp_path / "a.ckpt.index")


UNCHECKED = 40  # bytes of the footer before its last eight: where two blocks are, padded with zeros


def read_all(index):
    return {name: tensor.read() for name, tensor in open_bundle(index).items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A copy of a golden folder, for damage; each test writes its file anew."""
    folder = tmp_path_factory.mktemp("release") / "pretraining"
    return Path(shutil.copytree(GOLDENS / "pretraining", folder))


@given(st.sampled_from([INDEX, DATA]), st.integers(0, 2**32))
def test_a_flipped_bit_is_found(release, name, bit):
    sound = (GOLDENS / "pretraining" / name).read_bytes()
    place = bit // 8 % (len(sound) - (8 + UNCHECKED if name == INDEX else 0))
    (release / name).write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit % 8]) + sound[place + 1 :])
    try:
        with pytest.raises(InputError, match=r"bert_model\.ckpt\.(index|data-00000-of-00001): "):
            read_all(release / INDEX)
    finally:
        (release / name).write_bytes(sound)


def test_truncated_files_are_refused_at_every_length(release):
    whole = (release / INDEX).read_bytes()
    try:
        for length in range(0, len(whole), 7):
            (release / INDEX).write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"bert_model\.ckpt\.index: damaged or not a TensorFlow checkpoint"):
                open_bundle(release / INDEX)
    finally:
        (release / INDEX).write_bytes(whole)


def test_a_data_file_that_is_short_or_missing_or_changed_is_named(golden):
    folder = golden("shards")
    second = folder / "bert_model.ckpt.data-00001-of-00002"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data-00001-of-00002: too short for bert/pooler/dense/kernel; copy it again"):
        bertgpt.load_pretrained(folder)
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"data-00001-of-00002: bert/pooler/dense/kernel has a wrong checksum"):
        bertgpt.load_pretrained(folder)
    second.unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00002: no such file; copy all 2 data files of bert_model"):
        bertgpt.load_pretrained(folder)
    second.mkdir()
    with pytest.raises(InputError, match=r"data-00001-of-00002: is a folder"):
        bertgpt.load_pretrained(folder)


def test_names_and_layouts_become_hugging_faces():
    theirs, ours = open_bundle(GOLDENS / "training" / "model.ckpt-2.index"), open_tensors(GOLDENS / "training")
    assert len(theirs) == 3 * len(ours) + 1  # Adam's two slots of each, and the step
    kernel = ours["bert.encoder.layer.0.output.dense.weight"]
    assert kernel.shape == theirs[LAYER].shape[::-1] == (8, 16)
    np.testing.assert_array_equal(kernel.read(), theirs[LAYER].read().T)


def vocabulary(folder, words):
    (folder / "bert_config.json").write_text("{}")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
    return bertgpt.load_tokenizer(folder)


CASED = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "a", "b", "Ab", "é"]


def test_case_follows_from_the_vocabulary_of_a_release(tmp_path):
    assert vocabulary(tmp_path, ["a", "b", "##b", "e", "新"]).encode("É Ab").tokens[1:-1] == ["e", "a", "##b"]
    assert vocabulary(tmp_path, CASED).encode("é Ab").tokens[1:-1] == ["é", "Ab"]
    with pytest.warns(UserWarning, match=r"lower-cased, which is a guess: 1 pieces, such as NHK, have capital letters"):
        assert vocabulary(tmp_path, ["a", "b", "NHK"]).encode("A").tokens[1:-1] == ["a"]


def test_case_follows_from_tokenizer_config_where_there_is_one(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert vocabulary(tmp_path, ["a", "b", "NHK"]).encode("NHK").tokens[1:-1] == ["NHK"]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text("{}")  # a Hugging Face folder, with its default
    assert vocabulary(tmp_path, CASED).encode("Ab b").tokens[1:-1] == ["[UNK]", "b"]


def test_commands_take_a_folder_of_googles(documents, tmp_path):
    assert main(["fill-mask", str(GOLDENS / "pretraining"), "the cat [MASK] on the mat ."]) == 0
    assert main(["inspect", str(GOLDENS / "pretraining")]) == 0
    assert main(["predict", str(GOLDENS / "pretraining"), "--text", "the cat sat .", "--pair", "it was fine ."]) == 0
    assert main(["export", str(GOLDENS / "pretraining"), str(tmp_path / "exported")]) == 0
    assert_equal(bertgpt.load_pretrained(tmp_path / "exported")[1], bertgpt.load_pretrained(GOLDENS / "pretraining")[1])
    (tmp_path / "text.txt").write_text("\n\n".join(documents[:40]))
    (tmp_path / "run.yaml").write_text(f"model: {{init_from: {GOLDENS / 'training'}}}\n")
    small = ["train.steps=1", "train.batch_size=2", "train.eval_examples=2", "data.sequence_length=16"]
    small += ["data.eval_fraction=0.2", "data.workers=1", "parallel.strategy=jit", f"data.train={tmp_path}/text.txt"]
    assert main(["pretrain", str(tmp_path / "run.yaml"), f"out={tmp_path}/run", *small]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0


if __name__ == "__main__":  # prints the largest differences, for docs/parity.md
    jax.config.update("jax_default_matmul_precision", "highest")
    with tempfile.TemporaryDirectory() as home:
        copy = Path(shutil.copytree(GOLDENS, Path(home, "google")))
        shutil.copytree(GOLDENS / "squad", copy / "squad, gelu_new")
        change_config(copy / "squad, gelu_new", hidden_act="gelu_new")
        for kind in ("pretraining", "training", "classifier", "squad", "squad, gelu_new", "shards"):
            loaded, *compared = run(copy / kind, kind.split(",")[0])
            print(f"{kind:<18}{type(loaded).__name__:<32}{largest_difference(*compared):.1e}")
