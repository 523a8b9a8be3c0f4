"""A mirror at s3://: complete checkpoints are copied there, and an empty out is restored from it."""

import json
import shutil

import boto3
import pytest
from moto.server import ThreadedMotoServer
from small_run import STEPS, command
from test_bucket_runs import evaluations, same_params

import bertgpt
from train import config as configs
from train.__main__ import main
from train.folders.checkpoints import Checkpoints
from train.jobs import pretraining

MIRROR = "s3://mirrors"


@pytest.fixture(scope="module")
def s3():
    """A client of an S3 on the loopback interface, which the processes of this module's tests use too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test"}
    variables |= {"AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="mirrors")
        yield client
    server.stop()


def names(s3, folder: str) -> list[str]:
    found = s3.list_objects_v2(Bucket="mirrors", Prefix=f"{folder}/")
    return [item["Key"].removeprefix(f"{folder}/") for item in found.get("Contents", ())]


def mirrored(s3, folder: str) -> list[int]:
    """The steps of the complete checkpoints in a mirror."""
    return sorted(int(name.split("/")[1]) for name in names(s3, folder) if name.endswith("digests.json"))


def settings(config_file, folder, name: str, *overrides: str):
    return configs.load(str(config_file), [f"out={folder / 'out'}", f"checkpoint.mirror={MIRROR}/{name}", *overrides])


def test_an_empty_out_is_restored_and_the_run_ends_bit_identical(s3, config_file, whole, cache, tmp_path, capsys):
    constant = ("optimizer.schedule=constant",)
    alone = configs.load(str(config_file), [f"out={tmp_path / 'alone'}", *constant])
    pretraining.pretrain(alone)
    pretraining.pretrain(settings(config_file, tmp_path, "restored", *constant, "train.steps=8"))
    assert mirrored(s3, "restored") == Checkpoints(tmp_path / "out/checkpoints").steps() == [4, 8]
    here = {file.name for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert here == {name for name in names(s3, "restored") if "/" not in name}
    assert not [name for name in names(s3, "restored") if name.startswith("store/")]
    shutil.rmtree(tmp_path / "out")
    pretraining.pretrain(settings(config_file, tmp_path, "restored", *constant))
    output = capsys.readouterr().out
    assert f"restored from {MIRROR}/restored: checkpoints 4, 8" in output
    assert "resuming from step 8" in output
    made, wanted = (evaluations((tmp_path / name / "metrics.jsonl").read_bytes()) for name in ("out", "alone"))
    assert made == wanted
    assert same_params(tmp_path / "out", tmp_path / "alone")
    assert mirrored(s3, "restored") == Checkpoints(tmp_path / "out/checkpoints").steps()
    assert same_params(f"{MIRROR}/restored", tmp_path / "alone")
    body = s3.get_object(Bucket="mirrors", Key="restored/metrics.jsonl")["Body"].read()
    assert body == (tmp_path / "out/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("fault", ["changed", "missing", "unmarked"])
def test_a_damaged_or_incomplete_copy_is_not_restored(fault, s3, config_file, cache, tmp_path, capsys):
    pretraining.pretrain(settings(config_file, tmp_path, fault, "train.steps=8"))
    shutil.rmtree(tmp_path / "out")
    found = [name for name in names(s3, fault) if name.startswith("checkpoints/8/")]
    victim = next(name for name in found if ("digests" if fault == "unmarked" else "state/d/") in name)
    if fault == "changed":
        s3.put_object(Bucket="mirrors", Key=f"{fault}/{victim}", Body=b"x")
    else:
        s3.delete_object(Bucket="mirrors", Key=f"{fault}/{victim}")
    pretraining.pretrain(settings(config_file, tmp_path, fault, "train.steps=8"))
    output, errors = capsys.readouterr()
    assert "resuming from step 4" in output
    warned = f"warning: checkpoint 8 of {MIRROR}/{fault} is damaged: state/d/" in errors
    assert warned == (fault != "unmarked")
    assert not list((tmp_path / "out/checkpoints").glob(".*"))


def test_a_mirror_with_another_run_is_refused_and_left_as_it_is(s3, config_file, cache, tmp_path):
    pretraining.pretrain(settings(config_file, tmp_path, "other", "train.steps=4"))
    before = names(s3, "other")
    line = rf"checkpoint.mirror is {MIRROR}/other, which has a run with different settings: train.batch_size \(8 -> 4\)"
    with pytest.raises(bertgpt.InputError, match=line):
        pretraining.pretrain(settings(config_file, tmp_path / "new", "other", "train.batch_size=4"))
    assert names(s3, "other") == before


def test_a_copy_that_fails_is_a_warning_and_is_made_up_for(s3, config_file, cache, tmp_path, capsys, monkeypatch):
    from train.addresses import Remote

    upload, failures = Remote.upload, []

    def failing(remote, file, name: str) -> None:
        if "checkpoints/4/" in name:
            failures.append(name)
            raise bertgpt.InputError(f"{remote.address}/{name}: cannot be written: no route to host")
        upload(remote, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", failing)
        pretraining.pretrain(settings(config_file, tmp_path, "late", "train.steps=8"))
    errors = capsys.readouterr().err
    assert failures
    assert f"warning: {MIRROR}/late/checkpoints/4/" in errors
    assert "cannot be written: no route to host; tried again at the next checkpoint" in errors
    assert 4 not in mirrored(s3, "late")
    pretraining.pretrain(settings(config_file, tmp_path, "late", "train.steps=12"))
    assert mirrored(s3, "late") == Checkpoints(tmp_path / "out/checkpoints").steps()


def test_without_a_server_or_a_bucket_it_is_one_line_before_any_work(s3, config_file, cache, tmp_path, capsys):
    arguments = ["pretrain", str(config_file), f"out={tmp_path / 'out'}", "checkpoint.mirror=s3://nobody/x"]
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("error: checkpoint.mirror is s3://nobody/x")
    assert errors.count("\n") == 1
    assert "NoSuchBucket" in errors or "does not exist" in errors
    process = command(config_file, *arguments[2:], AWS_ENDPOINT_URL="http://127.0.0.1:1")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("error: checkpoint.mirror is s3://nobody/x")
    assert errors.count("\n") == 1
    assert not output
    assert not (tmp_path / "out").exists()


def test_any_file_system_of_fsspec_can_be_a_mirror(config_file, cache, tmp_path):
    mirror = f"checkpoint.mirror=file://{tmp_path}/mirror"
    config = configs.load(str(config_file), [f"out={tmp_path / 'out'}", mirror, "train.steps=4"])
    pretraining.pretrain(config)
    digests = json.loads((tmp_path / "mirror/checkpoints/4/digests.json").read_text())["files"]
    assert all((tmp_path / "mirror/checkpoints/4" / name).is_file() for name in digests)
    shutil.rmtree(tmp_path / "out")
    config.train.steps = 8
    pretraining.pretrain(config)
    assert Checkpoints(tmp_path / "out/checkpoints").steps() == [4, 8]
    assert STEPS > 8
