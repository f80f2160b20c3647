"""What all tests share: a scratch cache and home for the session, no hub, no login, and tiny models made once.

The variables are set when this file is imported, before any library that reads them, and subprocesses inherit them.
Under xdist the process that starts the workers sets them for all.
"""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import platformdirs
import pytest
from support.chromium import browser as browser  # a fixture
from support.commands import ask_inspect_here


def isolate() -> None:
    """Give the session a home, a cache and an environment in which nobody is logged in to anything."""
    scratch = Path(tempfile.mkdtemp(prefix="lora-sweep-tests-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ["LASTING_CACHE"] = os.environ.get("LORA_SWEEP_CACHE") or str(platformdirs.user_cache_path("lora-sweep"))
    pip_settings = Path("~/.config/pip/pip.conf").expanduser()
    if pip_settings.is_file():  # pip would look for them below the new home
        os.environ.setdefault("PIP_CONFIG_FILE", str(pip_settings))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "HF_")) or name == "NETRC"]:
        del os.environ[name]
    (scratch / "home").mkdir()
    tests = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join((str(tests.parent), str(tests)))  # of processes, wherever they run
    os.environ.update(
        HOME=str(scratch / "home"),
        LORA_SWEEP_CACHE=str(scratch / "cache"),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )


if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has inherited all of it
    isolate()


@pytest.fixture(scope="module", autouse=True)
def _freeze_imports() -> None:
    """Take what the imports made out of the garbage collector's sight: to walk it took 0.3 s each time.

    A worker collects at each stage of each trial, and so do the tests that run its code in this process.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _inspect_here() -> Iterator[None]:
    """Let plans look at models in this process: a child that imports torch for each of them would take minutes.

    A command in a process of its own, as in test_smoke_sweep.py, still starts that child.
    """
    with mock.patch("sweep.plan.facts.ask_inspect", ask_inspect_here):
        yield


@pytest.fixture(scope="session")
def tiny_folder() -> Callable[..., Path]:
    """``tiny_folder("llama", tie_word_embeddings=True)``: a folder with that random model, made once a session.

    The folder is shared: copy it before changing anything in it.
    """
    from lora_sweep.config.identity import short_hash
    from lora_sweep.runs.cache import build_once, cache_folder

    def make(shape: str, **changes: Any) -> Path:
        folder = cache_folder() / "test-models" / f"{shape}-{short_hash(changes)}"
        with build_once(folder) as part:
            if part is not None:
                from lora_sweep.model.tiny import make_tiny_model

                make_tiny_model(shape, part, **changes)
        return folder

    return make
