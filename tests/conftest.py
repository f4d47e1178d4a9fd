"""What all tests share: how programs are compiled, parsed flags, and a small prepared demo data set."""

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

# Before JAX is imported, here and in the processes that tests start. Tiny networks take longer to compile than to run:
# with fewer optimisations and XLA's older emitters they compile in a third of the time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "xla"))
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import pytest
from absl import flags
from rgbd_jax.datasets.rgbd_demo.builder import RgbdDemo

from rgbd_jax import cli, step

ROOT = Path(__file__).parents[1]
NOT_TRACED = ("checkpoint", "continue_from", "data", "eval", "init_from", "train")  # but for train.microbatches


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that have slow tests: of two workers none is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _parsed_flags():
    """Grain reads absl flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])


@pytest.fixture(scope="session", autouse=True)
def _steps_of_one_config_are_traced_once():
    """Trainings and evaluations share jitted steps: to trace one again takes longer than a tiny training."""

    def shared(compile_step):
        steps = {}

        def get(model, mesh):
            fields = model.config.to_dict()
            traced = {name: value for name, value in fields.items() if name not in NOT_TRACED}
            key = json.dumps([traced, fields["train"]["microbatches"], model.num_classes], default=str), mesh
            if key not in steps:
                steps[key] = compile_step(model, mesh)
            return steps[key]

        return get

    with pytest.MonkeyPatch.context() as patched:
        for name in ("compile_train_step", "compile_evaluation_step"):
            patched.setattr(step, name, shared(getattr(step, name)))
        yield


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory) -> Path:
    """The data_dir of a demo data set of 4 clips a class for training and 2 (24 in all) for validation."""
    data_dir = tmp_path_factory.mktemp("small_demo")
    builder = RgbdDemo(data_dir=data_dir, clips_per_class={"train": 4, "validation": 2}, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return data_dir


@pytest.fixture
def command_line(monkeypatch):
    """Runs the command of a command line in this process, whose logging and signals stay as they are."""
    log, handler = logging.getLogger("rgbd_jax"), signal.getsignal(signal.SIGTERM)
    handlers, state = list(log.handlers), (log.propagate, log.level)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield lambda *arguments: cli.main(list(map(str, arguments)))
    signal.signal(signal.SIGTERM, handler)
    log.handlers[:] = handlers
    log.propagate = state[0]
    log.setLevel(state[1])


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; tests are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("there is no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a test pattern, permitted
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", *camera])
        yield browser
        browser.close()
