"""Kills the real driver of a search at random moments, resumes it, and compares its trials with those of a search
that nobody disturbed.

    python -m benchmarks.kill_search --kills 20

One trial at a time, so that both searches propose the same trials. Prints one line a kill and the totals: trials
lost, epochs trained twice, and trial tables that differ.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

import psutil

from tests.exp.driver import ONE_AT_A_TIME, SMALL, end, start, trained_epochs, trial_table


def arguments(trials: int, cache: Path) -> list[str]:
    """A small search whose trials are long enough to be hit."""
    return [*SMALL, ONE_AT_A_TIME, f"trials={trials}", f"runtime.cache={cache}", "hydra.run.dir=found"]


def disturbed(place: Path, line: list[str], kills: int, longest: float, draw: random.Random) -> list[str]:
    """Kill a search ``kills`` times at random moments, then let it end; returns what remained of each kill."""
    remained, command, done = [], line, 0
    while done < kills:
        driver = start(place, *command)
        moment = draw.uniform(0.0, longest)
        began = time.monotonic()
        while driver.poll() is None and time.monotonic() - began < moment:
            time.sleep(0.01)
        if driver.poll() is not None:
            break
        children = psutil.Process(driver.pid).children(recursive=True)
        end(driver, signal.SIGKILL)
        done += 1
        begun = (place / "found" / "study.journal").exists()
        records = (place / "found" / "study.journal").read_bytes().count(b"\n") if begun else 0
        alive = sum(process.is_running() for process in children)
        remained.append(f"{moment:6.1f} s  {records:4d} records  {alive:2d} processes alive at once")
        command = [f"resume={place / 'found'}"] if (place / "found" / "command.json").exists() else line
        if command is line and (place / "found").exists():  # killed before the folder was anything
            (place / "found").rename(place / f"nothing_{done}")
    if (place / "found" / "manifest.json").exists():
        return remained
    code = start(place, *command).wait(timeout=900)
    if code:
        raise SystemExit(f"the resumed search ended with {code}; see {place / 'out.txt'}")
    return remained


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in all")
    parser.add_argument("--per-search", type=int, default=4, help="SIGKILLs of one search before it may end")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, base = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="anyo-kills-"))
    line = arguments(options.trials, base / "cache")
    (base / "whole").mkdir()
    began = time.monotonic()
    if code := start(base / "whole", *line).wait():
        raise SystemExit(f"the undisturbed search ended with {code}; see {base / 'whole' / 'out.txt'}")
    longest = time.monotonic() - began
    whole, epochs = trial_table(base / "whole" / "found"), trained_epochs(base / "whole" / "found")
    print(f"undisturbed: {longest:.0f} s, {len(whole)} trials, {len(epochs)} epochs")
    kills = lost = repeated = differing = searches = 0
    while kills < options.kills:
        searches += 1
        place = base / f"killed_{searches}"
        place.mkdir()
        remained = disturbed(place, line, min(options.per_search, options.kills - kills), longest, draw)
        kills += len(remained)
        table, trained = trial_table(place / "found"), trained_epochs(place / "found")
        again = len(trained) - len(set(trained))
        lost, repeated = lost + len(whole) - len(table), repeated + again
        differing += table != whole
        for text in remained:
            print(f"search {searches}: killed after {text}", flush=True)
        print(f"search {searches}: {len(table)} trials, {again} epochs trained twice, same table: {table == whole}")
    print(
        f"\n{kills} kills in {searches} searches: {lost} trials lost, {repeated} epochs trained twice, "
        f"{differing} trial tables that differ"
    )
    print(f"(folders: {base})")


if __name__ == "__main__":
    main()
