"""train.objective: what a run learns, which heads its model has, and what its evaluation scores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_commands import fails, same, write_config

import bertgpt
from bertgpt.checkpoints.load import contents_of_folder
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.errors import InputError
from train import config as configs
from train.__main__ import main
from train.folders.run_folder import fitting_objective, load_for_pretraining, load_run
from train.jobs import objectives
from train.sections import RunConfig

WARNS = pytest.mark.filterwarnings("default::UserWarning")


@pytest.fixture(scope="module")
def config_file(corpus_file, tmp_path_factory):
    """A small run that learns masked tokens alone, in packed rows with whole words masked."""
    data = {"pack": True, "whole_word": True, "mask_rate": 0.3, "mask_split": [0.9, 0.05, 0.05]}
    return write_config(tmp_path_factory.mktemp("run"), "mlm", corpus_file, data=data, train={"objective": "mlm"})


@pytest.fixture(scope="module")
def mlm_run(config_file):
    """A finished run's folder."""
    assert main(["pretrain", str(config_file)]) == 0
    return config_file.parent / "mlm"


@pytest.fixture(scope="module")
def exported(mlm_run):
    """Its export."""
    assert main(["export", str(mlm_run), str(mlm_run) + "_exported"]) == 0
    return mlm_run.with_name("mlm_exported")


@pytest.fixture
def both_heads(wordpiece, tmp_path):
    """A folder with both pretraining heads, whose config.json names only one, as bert-base-uncased's does."""
    config = bertgpt.presets.bert_tiny(vocab_size=200, hidden_size=16, num_heads=2, mlp_size=32, max_positions=32)
    model = bertgpt.BertForPreTraining(config)
    params = model.init(jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    bertgpt.save_pretrained(tmp_path / "both", model, params, wordpiece)
    file = tmp_path / "both" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["BertForMaskedLM"]}))
    return tmp_path / "both"


def metrics(folder, split):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["split"] == split]


def test_a_run_of_masked_tokens_alone_leaves_one_head_and_its_figures(mlm_run, capsys):
    assert load_run(mlm_run).params.keys() == {"bert", "mlm_head"}
    assert "pooler" not in load_run(mlm_run).params["bert"]
    for row in metrics(mlm_run, "train"):
        assert row["loss"] == row["mlm_loss"]
    held_out = metrics(mlm_run, "eval")[-1]
    assert {"mlm_accuracy", "unigram_cross_entropy", "whole_word_mlm_loss", "whole_word_mlm_accuracy"} <= set(held_out)
    assert not any("nsp" in name for name in held_out)
    assert held_out["loss"] == held_out["mlm_loss"] != held_out["whole_word_mlm_loss"]
    assert main(["report", str(mlm_run)]) == 0
    said = capsys.readouterr().out
    assert "MLM accuracy 0." in said
    assert "with whole words masked, MLM loss " in said


def test_its_export_is_a_masked_language_model(exported, mlm_run, capsys):
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert same(load_run(exported).params, load_run(mlm_run).params)
    assert main(["fill-mask", str(exported), "a [MASK] b"]) == 0
    assert "no NSP head" not in capsys.readouterr().err


def test_the_plan_of_a_run_is_that_of_its_model(config_file, tmp_path, capsys):
    said = []
    for objective in ("mlm", "mlm_nsp"):
        assert main(["plan", str(config_file), f"train.objective={objective}", f"out={tmp_path}/new"]) == 0
        said.append(capsys.readouterr().out)
    assert "objective mlm," in said[0]
    assert "objective mlm_nsp," in said[1]
    counts = [int(text.split(" parameters")[0].split()[-1].replace(",", "")) for text in said]
    assert counts[1] - counts[0] == 16 * 16 + 16 + 2 * 16 + 2  # pooler and NSP head


@pytest.mark.parametrize(
    ("family", "heads", "expected"),
    [
        ("bert", {"pooler", "mlm", "nsp"}, "mlm_nsp"),
        ("bert", {"pooler", "mlm"}, "mlm"),
        ("bert", {"mlm"}, "mlm"),
        ("bert", {"pooler", "classifier"}, "mlm_nsp"),
        ("bert", set(), "mlm_nsp"),
        ("gpt", {"lm"}, "clm"),
        ("gpt", set(), "clm"),
    ],
)
def test_without_an_objective_the_heads_decide(family, heads, expected):
    assert fitting_objective(family, heads) == expected


def test_tensors_decide_and_not_the_named_class(both_heads, exported):
    assert contents_of_folder(both_heads) == ("bert", {"pooler", "mlm", "nsp"})
    assert type(load_for_pretraining(both_heads).model).__name__ == "BertForPreTraining"
    assert contents_of_folder(exported) == ("bert", {"mlm"})
    assert type(load_for_pretraining(exported).model).__name__ == "BertForMaskedLM"


def test_a_class_that_is_unknown_here_is_not_needed(both_heads):
    file = both_heads / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["BertLMHeadModel"]}))
    assert type(load_for_pretraining(both_heads).model).__name__ == "BertForPreTraining"


@WARNS
def test_new_and_unused_heads_are_logged(both_heads, exported, mlm_run, capsys):
    assert type(load_for_pretraining(both_heads, objective="mlm").model).__name__ == "BertForMaskedLM"
    assert f"{both_heads}: train.objective mlm; unused heads: nsp, pooler" in capsys.readouterr().out
    load_for_pretraining(both_heads)
    assert f"{both_heads}: train.objective mlm_nsp; no new or unused heads" in capsys.readouterr().out
    for folder in (exported, mlm_run):
        assert type(load_for_pretraining(folder, objective="mlm_nsp").model).__name__ == "BertForPreTraining"
        assert f"{folder}: train.objective mlm_nsp; new heads: nsp, pooler" in capsys.readouterr().out


def test_a_checkpoint_goes_on_with_the_heads_it_has(config_file, exported, tmp_path, capsys):
    overrides = [f"out={tmp_path}/run", f"data.store={tmp_path}/store", f"model.init_from={exported}"]
    overrides += ["train.objective=null", "train.steps=1", "optimizer.learning_rate=0"]
    assert main(["pretrain", str(config_file), *overrides]) == 0
    assert same(load_run(tmp_path / "run").params, load_run(exported).params)
    assert configs.load(str(tmp_path / "run" / "config.yaml")).train.objective == "mlm"
    capsys.readouterr()
    assert main(["pretrain", str(config_file), *overrides, "train.steps=2"]) == 0  # the same objective, still unnamed
    assert "resuming from step 1" in capsys.readouterr().out


def test_a_run_keeps_its_objective(config_file, mlm_run, capsys):
    line = fails(capsys, "pretrain", config_file, "train.objective=mlm_nsp", "train.steps=6")
    assert f"{mlm_run} was started with different settings: train.objective (mlm -> mlm_nsp); restore" in line


def test_changed_sizes_of_a_run_are_named_as_changed_settings(config_file, capsys):
    line = fails(capsys, "pretrain", config_file, "model.hidden_size=32", "train.steps=6")
    assert "was started with different settings: model.hidden_size (16 -> 32)" in line


def test_a_run_of_an_earlier_version_goes_on(config_file, mlm_run, capsys):
    saved = mlm_run / "config.yaml"
    before = saved.read_text()
    saved.write_text(before.replace("  objective: mlm\n", ""))
    assert main(["pretrain", str(config_file)]) == 0
    assert "finished" in capsys.readouterr().out
    line = fails(capsys, "pretrain", config_file, "train.objective=mlm_nsp", "train.steps=6")
    assert f"{mlm_run} was started with train.objective mlm, not mlm_nsp; restore it, or start a new run" in line
    saved.write_text(before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.preset=gpt1"], "train.objective mlm is for BERT, and the model is a GPT-1; set train.objective=clm"),
        (
            ["train.objective=clm"],
            "train.objective clm is for GPT-1, and the model is a BERT; set train.obj",
        ),
        (["train.objective=rtd"], "train.objective is 'rtd'; choose one of mlm_nsp, mlm, clm"),
        (["data.mask_rate=0"], "data.mask_rate is 0.0; it must be above 0"),
        (["data.mask_rate=1"], "data.mask_rate is 1.0; it must be under 1"),
        (
            ["data.mask_split=[0.8,0.1]"],
            "data.mask_split is [0.8, 0.1]; it must be three numbers from 0 to 1",
        ),
        (["data.mask_split=[0.8,0.1,0.2]"], "data.mask_split is [0.8, 0.1, 0.2]; it must be three numbers"),
        (["data.mask_split=[1.1,-0.1,0]"], "data.mask_split is [1.1, -0.1, 0.0]; it must be three numbers"),
        (["data.mask_split=0.8"], "data.mask_split is '0.8'; it must be three numbers whose sum is 1"),
        (["data.mask_split=[a,b,c]"], "data.mask_split is '[a,b,c]'; it must be three numbers whose sum is 1"),
    ],
)
def test_a_mistake_is_one_line(overrides, message, config_file, tmp_path, capsys):
    arguments = [f"out={tmp_path}/out", f"data.store={tmp_path}/store", *overrides]
    assert message in fails(capsys, "pretrain", config_file, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_has_no_objective(config_file, capsys):
    line = fails(capsys, "finetune", config_file, "task.kind=classification")
    assert "train.objective mlm is for pretraining; add train.objective=null" in line


def run_config(objective: str, **data) -> RunConfig:
    config = RunConfig()
    config.train.objective, config.data.sequence_length = objective, 32
    for name, value in data.items():
        setattr(config.data, name, value)
    return config


@pytest.mark.parametrize("objective", ["mlm", "mlm_nsp"])
def test_an_evaluation_has_the_same_masks_whatever_those_of_training_are(objective, bert_split, wordpiece):
    plain = run_config(objective)
    changed = run_config(objective, mask_rate=0.4, mask_split=[0.0, 0.5, 0.5], whole_word=True, balance_nsp=False)
    changed.seed, changed.data.pack = 7, True
    sources = [objectives.eval_source(bert_split, wordpiece, config) for config in (plain, changed)]
    one, two = (source.batch(np.arange(50)) for source in sources)
    assert one["masked_positions"].shape == (50, 5)  # 15 % of 32
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    words = objectives.eval_source(bert_split, wordpiece, plain, MaskRule(whole_word=True)).batch(np.arange(50))
    assert (words["masked_positions"] != one["masked_positions"]).any()


@pytest.mark.parametrize("objective", ["mlm", "mlm_nsp"])
@pytest.mark.parametrize("pack", [False, True])
def test_training_has_the_masks_that_are_asked_for(objective, pack, bert_split, wordpiece):
    config = run_config(objective, mask_rate=0.5, mask_split=[0.0, 0.0, 1.0], pack=pack)
    batch = objectives.train_source(bert_split, wordpiece, config).batch(np.arange(40))
    assert batch["loss_mask"].sum() == pytest.approx(0.5 * batch["attention_mask"].sum(), rel=0.05)
    chosen = np.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
    np.testing.assert_array_equal(chosen[batch["loss_mask"] > 0], batch["labels"][batch["loss_mask"] > 0])


def test_every_pretraining_recipe_states_its_objective():
    recipes = [*(Path(__file__).parent.parent / "configs").glob("*.yaml")]
    assert len(recipes) >= 6
    for recipe in recipes:
        assert configs.load(str(recipe)).train.objective is not None, recipe


def test_an_objective_needs_its_family():
    with pytest.raises(InputError, match="train.objective clm is for GPT-1"):
        objectives.decide(run_config("clm"), None)
