"""A lock file is held by one at a time, and by nobody when its holder is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from src.core.locks import alone

HOLD = """
import sys
from pathlib import Path
from src.core.locks import alone

with alone(Path(sys.argv[1]), print) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def test_nobody_waits_for_a_free_lock_and_nothing_is_left(tmp_path: Path) -> None:
    waited = list[str]()
    for _ in range(2):
        with alone(tmp_path / "locks" / "a", waited.append) as held:
            assert held
    assert waited == []
    assert list((tmp_path / "locks").iterdir()) == []


def test_different_locks_are_held_together(tmp_path: Path) -> None:
    waited = list[str]()
    with alone(tmp_path / "a", waited.append) as one, alone(tmp_path / "b", waited.append) as other:
        assert (one, other) == (True, True)
    assert waited == []


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    path, waited = tmp_path / "a", list[str]()
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"

        def kill(who: str) -> None:
            waited.append(who)
            holder.kill()

        with alone(path, kill) as held:
            assert held
    assert len(waited) == 1
    assert waited[0].startswith(f"process {holder.pid} on ")


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    waited = list[str]()
    for _ in range(2):
        try:
            with alone(tmp_path / "a", waited.append):
                raise KeyError
        except KeyError:
            pass
    assert waited == []


def test_a_link_in_a_locks_place_is_removed_and_what_it_leads_to_is_whole(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("ten years")
    (tmp_path / "a").symlink_to(tmp_path / "thesis")
    with alone(tmp_path / "a", print) as held:
        assert held
        assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "thesis").read_text() == "ten years"
    assert not (tmp_path / "a").exists()
