"""Workdirs and data in object storage, on an emulator: resuming, kills, damage, tools, and errors."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboardX.record_writer import GCSRecordWriter

from rgbd_jax import experiment, storage
from rgbd_jax.checkpoint.checkpoints import find, list_checkpoints
from rgbd_jax.checkpoint.metric_writers import TIMING_METRICS, read_metrics
from rgbd_jax.pytorch import convert
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.storage import as_path, files_below
from rgbd_jax.tools import fuse, predict, report
from tests.conftest import ROOT
from tests.test_distributed import ended, environment, free_port, start, wait_until
from tests.test_main import TINY
from tests.tiny import run_command, saved_state, tiny_config

RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The folder of an emulator, to which this process and its children talk."""
    folder, port = tmp_path_factory.mktemp("emulator"), free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patched:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            patched.setenv(name, url)
        patched.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patched.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google for the kind of bucket
        pytest.importorskip("gcsfs", reason=f"gcsfs is not installed: {storage.INSTALL}")
        pytest.importorskip("gcp_storage_emulator", reason="the emulator is not installed: ./scripts/test.sh --gcs")
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.gcs_emulator", str(port), str(folder)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until((folder / ".cloudstorage").exists)
        yield folder
        del GCSRecordWriter.__del__  # it uploads once more, when this process ends
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def data_dir(emulator, small_demo):
    for file in files_below(small_demo):
        storage.upload(file, as_path("gs://bucket/data") / str(file.relative_to(small_demo)))
    return "gs://bucket/data"


@pytest.fixture(scope="module")
def on_disk(small_demo, tmp_path_factory):
    """A run on disk, and its result."""
    workdir = tmp_path_factory.mktemp("on_disk") / "run"
    return workdir, experiment.train(tiny_config(small_demo), workdir)


def command(workdir, data_dir, *more):
    overrides = [f"--config.{flag}" for flag in (*TINY, f"data.data_dir={data_dir}", *more)]
    return [sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", workdir, *overrides]


@pytest.fixture(scope="module")
def remote(emulator, data_dir):
    """The result of a run in the bucket, which was killed in the upload of a checkpoint mid-epoch, and resumed."""
    (emulator / "hold").write_text("run/recovery/5/state/manifest")
    arguments = command(RUN, data_dir, "checkpoint.every_steps=1")
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (emulator / "held").exists() or process.poll() is not None, seconds=300)
        assert process.poll() is None, process.stderr.read()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (emulator / "hold").unlink()
    assert any(files_below(as_path(f"{RUN}/recovery/5")))
    assert list_checkpoints(as_path(RUN))[0].name == "4"
    return experiment.train(tiny_config(data_dir), RUN)


def metrics_of(workdir):
    rows = read_metrics(as_path(workdir))
    return [{name: value for name, value in row.items() if name not in TIMING_METRICS} for row in rows]


@pytest.mark.optional
def test_a_run_killed_in_an_upload_resumes_with_the_bits_of_one_on_disk(remote, on_disk, data_dir, small_demo):
    workdir, result = on_disk
    assert {**remote, "seconds": 0} == {**result, "seconds": 0}
    states = saved_state(tiny_config(small_demo), workdir), saved_state(tiny_config(data_dir), as_path(RUN))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert metrics_of(RUN) == metrics_of(workdir)
    assert (as_path(RUN) / "MODEL_CARD.md").exists()
    assert any((as_path(RUN) / "tensorboard").iterdir())


@pytest.mark.optional
def test_evaluation_and_tools_take_a_run_in_a_bucket(remote, data_dir, on_disk, small_demo, tmp_path, capsys):
    evaluated = experiment.evaluate(tiny_config(data_dir), RUN)
    assert evaluated["top1"] == pytest.approx(remote["top1"])
    assert Scores.load(scores_file(as_path(RUN), "validation")).step == remote["step"]
    run_command(report, RUN)
    assert (as_path(RUN) / "report.html").read_text().endswith("</html>")
    experiment.evaluate(tiny_config(small_demo), on_disk[0])
    run_command(fuse, RUN, on_disk[0])
    run_command(convert, RUN, tmp_path / "run.safetensors")
    capsys.readouterr()
    run_command(predict, "--weights", RUN, "--json", "--example", "push")
    assert json.loads(capsys.readouterr().out)


@pytest.mark.optional
def test_a_run_copied_to_disk_is_intact(remote, tmp_path):
    for file in files_below(as_path(RUN)):
        target = tmp_path / str(file.relative_to(RUN))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert find(tmp_path, "latest") == tmp_path / "checkpoints/6"


@pytest.mark.optional
def test_a_checkpoint_with_a_lost_object_is_moved_and_the_one_before_used(remote, data_dir, caplog):
    state = saved_state(tiny_config(data_dir), as_path(RUN))
    (as_path(RUN) / "checkpoints/6/state/manifest.ocdbt").unlink()
    assert experiment.train(tiny_config(data_dir), RUN)["step"] == remote["step"]
    assert "checkpoints/6/state/manifest.ocdbt is missing" in caplog.text
    assert (as_path(RUN) / "damaged/checkpoints/6/checksums.json").exists()
    jax.tree.map(np.testing.assert_array_equal, state, saved_state(tiny_config(data_dir), as_path(RUN)))


@pytest.mark.optional
@pytest.mark.slow
def test_two_processes_train_in_a_bucket_and_one_resumes(data_dir):
    address = ["--coordinator", f"localhost:{free_port()}", "--process_count=2"]
    arguments = [*command("gs://bucket/group", data_dir, "train.epochs=1"), *address]
    processes = [start([*arguments, f"--process_index={index}"]) for index in range(2)]
    status, stderr = ended(processes, seconds=600)
    assert status == [0, 0], stderr
    assert [path.name for path in list_checkpoints(as_path("gs://bucket/group"))] == ["3"]
    experiment.train(tiny_config(data_dir), "gs://bucket/group")
    assert [row["step"] for row in metrics_of("gs://bucket/group") if row["kind"] == "train"] == [*range(1, 7)]


@pytest.mark.optional
def test_a_bucket_that_is_missing_and_credentials_are_one_message(emulator, data_dir, monkeypatch, small_demo):
    arguments = command("gs://nothing/run", data_dir)
    finished = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (finished.returncode, "Traceback" in finished.stderr) == (1, False)
    assert "error: gs://nothing cannot be used" in finished.stderr
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nothing.json")
    with pytest.raises(OSError, match=r"gs://private cannot be used: .*nothing.json"):
        experiment.train(tiny_config(small_demo), "gs://private/run")


def test_missing_packages_and_other_storage_are_one_message(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"needs the package gcsfs.*setup\.sh gcs"):
        experiment.train(tiny_config(tmp_path), "gs://without/run")
    with pytest.raises(ValueError, match=r"s3://bucket/run: .* only gs:// can be used"):
        experiment.train(tiny_config(tmp_path), "s3://bucket/run")
    with pytest.raises(ValueError, match=r"s3://bucket/data: .* only gs:// can be used"):
        experiment.train(tiny_config("s3://bucket/data"), tmp_path / "run")
    assert os.listdir(tmp_path) == []
