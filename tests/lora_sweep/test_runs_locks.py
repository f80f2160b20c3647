"""Locks: one holder at a time, freed when it dies, and no file left behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from lora_sweep.runs.locks import describe_holder, hold_lock, is_locked, remove_stale_locks

HOLD = "import sys, time; from pathlib import Path; from lora_sweep.runs.locks import hold_lock\n"
HOLD += "with hold_lock(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(60)"


def other(path: Path) -> subprocess.Popen[str]:
    """A process that tries to hold the lock ``path`` and prints whether it could."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_lock_is_refused_and_told_who_holds_the_first(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a"
    with hold_lock(path) as ours:
        assert ours
        assert is_locked(path)
        assert f"pid {os.getpid()} on " in describe_holder(path)
        with hold_lock(path) as again:
            assert not again
        with other(path) as process:
            assert says(process) == "False"
            process.kill()
    assert not is_locked(path)
    assert not path.exists()


def test_a_killed_holder_frees_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a"
    with other(path) as process:
        assert says(process) == "True"
        assert is_locked(path)
        process.send_signal(signal.SIGKILL)
    assert path.exists()
    assert not is_locked(path)
    with hold_lock(path) as ours:
        assert ours


def test_what_a_killed_holder_leaves_is_removed_and_what_is_held_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    with other(folder / "a") as process:
        assert says(process) == "True"
        process.kill()
    with hold_lock(folder / "b"):
        remove_stale_locks(folder)
        assert [path.name for path in folder.iterdir()] == ["b"]
        assert f"pid {os.getpid()} on " in describe_holder(folder / "b"), "its holder's words are untouched"
    assert not list(folder.iterdir())


def test_of_many_at_once_one_holds_it(tmp_path: Path) -> None:
    """A holder removes the file at its end, so another one can lock a file that was just removed: it must try again."""
    path = tmp_path / "locks" / "a"
    inside: list[int] = []
    most: list[int] = []

    def use() -> None:
        for _ in range(200):
            with hold_lock(path) as ours:
                if ours:
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) > 10
    assert not path.exists()


def test_a_holder_that_has_not_written_its_words_yet_has_a_name_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{")
    assert describe_holder(tmp_path / "a") == "another process"
    assert describe_holder(tmp_path / "b") == "another process"
