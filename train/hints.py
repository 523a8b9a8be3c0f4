"""What the settings of transformers, Google's BERT and nanoGPT are called here: hints for unknown keys."""

HINTS = {  # the last part of another program's name: what does the same here
    # transformers' TrainingArguments and its run_mlm.py, run_clm.py, run_glue.py, run_qa.py
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps",
    "bf16": "train.dtype=bfloat16",
    "block_size": "data.sequence_length",
    "cache_dir": "the environment variable HF_HOME, for models of the hub",
    "config_name": "model.preset",
    "dataloader_num_workers": "data.workers, for tokenizing; batches need no workers",
    "dataset_name": "data.train, which takes files or an address such as hf://datasets/owner/name/*.parquet",
    "early_stopping_patience": "train.patience",
    "eval_steps": "train.eval_every",
    "evaluation_strategy": "train.eval_every, in steps",
    "eval_strategy": "train.eval_every, in steps",
    "fp16": "train.dtype=bfloat16; there is no float16",
    "fsdp_config": "parallel.fsdp",
    "gradient_accumulation_steps": "train.accumulate; train.batch_size counts the rows of all micro-batches together",
    "gradient_checkpointing": "train.remat",
    "label_names": "task.label",
    "line_by_line": "data.document=line",
    "logging_steps": "train.log_every",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_norm",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "max_source_length": "data.sequence_length",
    "max_steps": "train.steps",
    "mlm_probability": "data.mask_rate",
    "model_name_or_path": "model.init_from",
    "model_revision": "model.init_revision",
    "model_type": "model.preset",
    "num_train_epochs": "train.epochs for tasks; for pretraining, train.steps",
    "optim": "optimizer.name",
    "output_dir": "out",
    "per_device_eval_batch_size": "train.batch_size, over all devices; an evaluation uses it, too",
    "per_device_train_batch_size": "train.batch_size, which counts the rows of all devices together",
    "per_gpu_train_batch_size": "train.batch_size, which counts the rows of all devices together",
    "preprocessing_num_workers": "data.workers",
    "remove_columns": "data.text_key, which names the column to read",
    "report_to": "train.tracker",
    "resume_from_checkpoint": "nothing: the same command with the same out resumes",
    "run_name": "the environment variable WANDB_NAME, with train.tracker=wandb",
    "save_steps": "checkpoint.every",
    "save_strategy": "checkpoint.every, in steps",
    "save_total_limit": "checkpoint.keep",
    "text_column": "data.text_key",
    "text_column_name": "data.text_key",
    "tokenizer_name": "tokenizer.path",
    "train_file": "data.train",
    "train_files": "data.train",
    "validation_file": "data.eval",
    "validation_split_percentage": "data.eval_fraction, a share such as 0.05",
    "warmup_ratio": "optimizer.warmup_fraction",
    # transformers' BertConfig and OpenAIGPTConfig
    "attention_probs_dropout_prob": "model.attention_dropout",
    "attn_pdrop": "model.attention_dropout",
    "hidden_act": "model.activation",
    "hidden_dropout_prob": "model.hidden_dropout",
    "intermediate_size": "model.mlp_size",
    "max_position_embeddings": "model.max_positions",
    "n_positions": "model.max_positions",
    "num_attention_heads": "model.num_heads",
    "num_hidden_layers": "model.num_layers",
    "resid_pdrop": "model.hidden_dropout",
    # google-research/bert's flags
    "bert_config_file": "model.preset, or model.init_from with the folder of the checkpoint",
    "do_lower_case": "tokenizer.lowercase for a new tokenizer; one that is loaded decides itself",
    "do_whole_word_mask": "data.whole_word",
    "dupe_factor": "nothing: each epoch has new masks and pairs",
    "init_checkpoint": "model.init_from, with the folder of the checkpoint",
    "input_file": "data.train",
    "iterations_per_loop": "nothing: steps are compiled one by one",
    "masked_lm_prob": "data.mask_rate",
    "max_predictions_per_seq": "nothing: data.mask_rate decides, and no mask is dropped",
    "num_train_steps": "train.steps",
    "num_warmup_steps": "optimizer.warmup_steps",
    "random_seed": "seed",
    "save_checkpoints_steps": "checkpoint.every",
    "train_batch_size": "train.batch_size",
    "vocab_file": "tokenizer.path",
    "warmup_proportion": "optimizer.warmup_fraction",
    # nanoGPT
    "beta1": "optimizer.b1",
    "beta2": "optimizer.b2",
    "compile": "nothing: steps are always compiled",
    "decay_lr": "optimizer.schedule",
    "dropout": "model.hidden_dropout and model.attention_dropout",
    "eval_interval": "train.eval_every",
    "eval_iters": "train.eval_examples, in examples",
    "grad_clip": "optimizer.clip_norm",
    "log_interval": "train.log_every",
    "max_iters": "train.steps",
    "min_lr": "optimizer.final_fraction, a share of the learning rate",
    "n_embd": "model.hidden_size",
    "n_head": "model.num_heads",
    "n_layer": "model.num_layers",
    "out_dir": "out",
    "wandb_log": "train.tracker=wandb",
    "wandb_project": "the environment variable WANDB_PROJECT, with train.tracker=wandb",
    "warmup_iters": "optimizer.warmup_steps",
    # short names
    "bs": "train.batch_size",
    "device": "the environment variable JAX_PLATFORMS (cpu, cuda or tpu)",
    "devices": "parallel.data and parallel.fsdp",
    "epochs": "train.epochs",
    "lr": "optimizer.learning_rate",
    "num_epochs": "train.epochs",
    "output": "out",
    "precision": "train.dtype",
    "wd": "optimizer.weight_decay",
}


def option_hint(option: str) -> str:
    """What to give for an option that a command lacks, such as --lr, since settings are given as key=value."""
    from .sections import KEYS

    option = option.partition("=")[0]
    name = option.strip("-").replace("-", "_")
    keys = [key for key in KEYS if name in (key, key.rpartition(".")[2])]
    meant = f"{keys[0]}=..." if len(keys) == 1 else hint(name)
    return (
        f"settings are given as key=value, and {option} is {meant}; " if meant else "settings are given as key=value; "
    )


def hint(name: str) -> str | None:
    """What does here what a key of another program does; None if the name is none of them.

    Args:
        name: as the user wrote it: with or without a section, with `-` or `_`, in any case.
    """
    return HINTS.get(name.rpartition(".")[2].strip("-").replace("-", "_").lower())
