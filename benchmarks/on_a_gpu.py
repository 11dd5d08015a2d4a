"""Every measurement that wants a GPU, the most telling first: one command for a quarter of an hour.

Each one runs as a process of its own with a limit of time; what it prints lies in FOLDER/NAME.txt, and
FOLDER/summary.md is written anew after each of them. A failure, or memory that is not enough, stops nothing; the same
command once more goes on with what is not done yet (FOLDER may have been carried to another machine). The teacher's
shape is Llama-2-7B's with random weights: nothing is downloaded. The commands themselves stand here and nowhere else.

    python -m benchmarks.on_a_gpu --list
    python -m benchmarks.on_a_gpu --out FOLDER                     # one GPU of 80 GB or more, 15 minutes
    python -m benchmarks.on_a_gpu --out FOLDER --all               # and what takes longer: see --list --all
    python -m benchmarks.on_a_gpu --out FOLDER --only gated-step tests --again
    python -m benchmarks.on_a_gpu --out FOLDER --small             # tiny shapes on the CPU: does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine_rate import table
from src.core.paths import write_json, write_text
from src.tuning.settings import TuningSettings

_SEVEN_B = "--device cuda --dtype bfloat16 --shape llama-2-7b"
_PUBLISHED = "--rank 8 --dropout 0.1"  # of conf/teacher/llama2_7b
_THOUSAND = "--objective title_lm --candidates 20 --title-tokens 31 --spread 0.2"  # prompts of about 1,024 tokens
_ITEM = f"{_SEVEN_B} {_PUBLISHED} --micro-batch 8 16 32 --checkpointing off on --grouped --rows 1024"
_TITLE = f"{_SEVEN_B} {_PUBLISHED} {_THOUSAND} --micro-batch 2 4 8 --checkpointing off on --grouped --rows 256"
_WRITING = f"{_SEVEN_B} --rank 8 --methods constrained grounded --rank-rows 128"
_TINY = "--device cpu --shape tiny"
_DONE, _KEPT = "done", "done.json"
_FEW_STEPS = f"{_TINY} --items 60 --micro-batch 2 --steps 1 --rows 8"
_FEW_ROWS = f"{_TINY} --items 60 --rows 4 --batch 4 --rank-rows 2 --rank-batch 2"


@dataclass(frozen=True)
class Command:
    """``python -m module words``; ``small`` are the words that show on a CPU that it runs.

    ``minutes`` is what it is given at most, ``gigabytes`` what its largest part is expected to need: a part that does
    not fit says so, and the others are measured.
    """

    name: str
    module: str
    words: str
    small: str
    minutes: float
    gigabytes: int

    def argv(self, small: bool) -> list[str]:
        """For a process."""
        return [sys.executable, "-m", self.module, *shlex.split(self.small if small else self.words)]

    def shown(self, small: bool) -> str:
        """As a person types it."""
        return f"python -m {self.module} {self.small if small else self.words}"


def _benchmark(name: str, script: str, words: str, small: str, minutes: float, gigabytes: int) -> Command:
    return Command(name, f"benchmarks.{script}", words, small, minutes, gigabytes)


def _look(part: str, minutes: float, gigabytes: int = 2) -> Command:
    return _benchmark(f"gpu-{part}", "gpu_check", f"{part} --device cuda", f"{part} --device cpu", minutes, gigabytes)


def _population() -> tuple[Command, ...]:
    """Trials that are trained as one model, where this version has it."""
    if "population" not in TuningSettings.__dataclass_fields__:
        return ()
    words = "runtime.device=cuda trials=33 student.loop.epochs=6 tuning.population=32"
    small = "runtime.device=cpu trials=3 student.loop.epochs=1 tuning.population=2"
    return (Command("search-population", "src.exp.tune_distill", words, small, 1.3, 20),)


#: a quarter of an hour: what a search of students stands on, then the teacher of 7 B parameters
COMMANDS = (
    _look("facts", 0.4),
    _look("attention", 0.5),
    _look("students", 1.0),
    _look("steps", 1.2),
    _look("together", 1.7, 20),
    _look("memory", 0.4, 80),
    Command(
        "tests",
        "pytest",
        "tests/teacher/test_on_a_gpu.py -q -rs -m 'not slow' -p no:cacheprovider",
        "tests/teacher/test_on_a_gpu.py -q -m 'not slow' -p no:cacheprovider",
        1.8,
        4,
    ),
    Command(
        "search",
        "src.exp.tune_distill",
        "runtime.device=cuda trials=8 student.loop.epochs=6",
        "runtime.device=cpu trials=1 student.loop.epochs=1",
        2.2,
        20,
    ),
    *_population(),
    _benchmark(
        "population-rate",
        "population_rate",
        "--device cuda --threads 1 --population 1 8 32 --items 1700 10000 --widths 64 --batch 256 --rounds 3",
        "--threads 1 --population 2 --items 30 --widths 8 --batch 4 --rounds 1",
        0.9,
        4,
    ),
    _benchmark(
        "training-title",
        "teacher_throughput",
        f"{_SEVEN_B} {_PUBLISHED} {_THOUSAND} --micro-batch 4 --checkpointing off on --grouped --rows 64",
        f"{_FEW_STEPS} --objective title_lm",
        1.1,
        57,
    ),
    _benchmark(
        "labelling-title",
        "labelling_rate",
        f"{_WRITING} --rank-batch 32 --holds shared",
        f"{_FEW_ROWS} --methods constrained grounded --holds shared",
        0.8,
        40,
    ),
    _benchmark(
        "training-item",
        "teacher_throughput",
        f"{_SEVEN_B} {_PUBLISHED} --micro-batch 16 --checkpointing off on --grouped --rows 256",
        _FEW_STEPS,
        0.9,
        40,
    ),
    _benchmark(
        "labelling-item",
        "labelling_rate",
        f"{_SEVEN_B} --rank 8 --methods item_ce items --batch 64 --rows 1024",
        f"{_FEW_ROWS} --methods item_ce items",
        0.8,
        20,
    ),
)

#: with more time, by name or with --all
FURTHER = (
    _benchmark(
        "gated-step",
        "gated_lora_step",
        f"{_SEVEN_B} --batch 8 --length 256 --rounds 9 --repeats 2",
        f"{_TINY} --rounds 2 --repeats 1 --length 8",
        0.9,
        60,
    ),
    _benchmark(
        "memory-title",
        "memory_estimate",
        f"{_SEVEN_B} {_PUBLISHED} {_THOUSAND} --micro-batch 4",
        f"{_TINY} --objective title_lm --micro-batch 2",
        0.9,
        57,
    ),
    _benchmark("training-item-sizes", "teacher_throughput", _ITEM, _FEW_STEPS, 4, 52),
    _benchmark("training-title-sizes", "teacher_throughput", _TITLE, f"{_FEW_STEPS} --objective title_lm", 5, 98),
    _benchmark("training-item-base", "teacher_throughput", f"{_ITEM} --compute base", _FEW_STEPS, 4, 40),
    _benchmark(
        "training-title-base",
        "teacher_throughput",
        f"{_TITLE} --compute base",
        f"{_FEW_STEPS} --objective title_lm --compute base",
        5,
        75,
    ),
    _benchmark(
        "memory-title-checkpointing",
        "memory_estimate",
        f"{_SEVEN_B} {_PUBLISHED} {_THOUSAND} --micro-batch 4 --checkpointing",
        f"{_TINY} --objective title_lm --micro-batch 2 --checkpointing",
        3,
        20,
    ),
    _benchmark(
        "memory-item",
        "memory_estimate",
        f"{_SEVEN_B} {_PUBLISHED} --micro-batch 16",
        f"{_TINY} --micro-batch 2",
        3,
        34,
    ),
    _benchmark(
        "labelling-beams",
        "labelling_rate",
        f"{_WRITING} --candidates 0 --rank-batch 8 --methods constrained",
        f"{_FEW_ROWS} --methods constrained --candidates 0",
        4,
        34,
    ),
    _benchmark(
        "gated-step-checkpointing",
        "gated_lora_step",
        f"{_SEVEN_B} --batch 8 --length 256 --rounds 21 --repeats 2 --checkpointing",
        f"{_TINY} --rounds 2 --repeats 1 --length 8 --checkpointing",
        4,
        24,
    ),
    _benchmark(
        "labelling-item-base",
        "labelling_rate",
        f"{_SEVEN_B} --rank 8 --methods item_ce items --batch 64 --rows 2048 --compute base",
        f"{_FEW_ROWS} --methods item_ce items --compute base",
        4,
        20,
    ),
)


@dataclass(frozen=True)
class Done:
    """How a command ended, after how many minutes."""

    command: Command
    outcome: str
    minutes: float
    output: str


def carry_out(command: Command, folder: Path, small: bool, minutes: float) -> Done:
    """Run it for ``minutes`` at most; all that it says goes to its file as it is said."""
    file, start = folder / f"{command.name}.txt", time.monotonic()
    with file.open("w", encoding="utf-8") as output:
        output.write(f"$ {command.shown(small)}\n\n")
        output.flush()
        try:
            code = subprocess.run(
                command.argv(small),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                timeout=60 * minutes,
                check=False,
            ).returncode
            outcome = _DONE if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            outcome = "ended: out of time"
    return Done(command, outcome, (time.monotonic() - start) / 60, file.read_text(encoding="utf-8", errors="replace"))


def carry_out_all(
    commands: Sequence[Command], folder: Path, small: bool, minutes: float, again: bool = False
) -> list[Done]:
    """One after the other within ``minutes`` in all; the summary is written after each.

    What an earlier call has done in the folder is not done once more, unless ``again``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = {} if again else _done_before(commands, folder, small)
    end, found = time.monotonic() + 60 * minutes, list[Done]()
    for command in commands:
        left = (end - time.monotonic()) / 60
        if command.name in before:
            found.append(before[command.name])
        elif left <= 0:
            found.append(Done(command, "not started: out of time", 0.0, ""))
        else:
            print(f"{command.name}: {command.shown(small)}", flush=True)
            found.append(carry_out(command, folder, small, min(left, command.minutes)))
            print(f"{command.name}: {found[-1].outcome}, {found[-1].minutes:.1f} min", flush=True)
        write_text(folder / "summary.md", "\n".join(summary(found, small)) + "\n")
        _keep(found, folder, small)
    return found


def _keep(found: Sequence[Done], folder: Path, small: bool) -> None:
    """Which commands are done, with those of other calls."""
    done = {done.command.name: done for done in found if done.outcome == _DONE}
    new = {name: {"command": one.command.shown(small), "minutes": one.minutes} for name, one in done.items()}
    write_json(folder / _KEPT, {**_kept(folder), **new})


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _done_before(commands: Sequence[Command], folder: Path, small: bool) -> dict[str, Done]:
    """The commands that an earlier call has done in just this form."""
    found = {}
    for command in commands:
        kept, file = _kept(folder).get(command.name), folder / f"{command.name}.txt"
        if kept is not None and kept["command"] == command.shown(small) and file.is_file():
            output = file.read_text(encoding="utf-8", errors="replace")
            found[command.name] = Done(command, _DONE, kept["minutes"], output)
    return found


def summary(found: Sequence[Done], small: bool) -> Iterator[str]:
    """Markdown: how each command ended, then what it found, or the end of what it said."""
    yield table(["command", "outcome", "minutes"], [(d.command.name, d.outcome, f"{d.minutes:.1f}") for d in found])
    for done in found:
        if done.output:
            yield f"\n## {done.command.name}\n\n`{done.command.shown(small)}`\n"
            yield figures(done.output)
            if done.outcome != _DONE:
                yield "\n".join(["", "```", *done.output.splitlines()[-25:], "```"])


def figures(output: str) -> str:
    """The tables of an output, and the lines that say what they stand on."""
    kept, before = list[str](), ""
    for line in output.splitlines():
        is_row = line.startswith("|")
        if is_row != before.startswith("|"):
            kept.append("")
        if is_row or line.startswith(("20", "matrix products")):
            kept.append(line if is_row else f"{line}\n")
        before = line
    return "\n".join(kept)


def listing(commands: Sequence[Command], small: bool) -> str:
    """What would be run."""
    rows = [(c.name, f"{c.minutes:g}", c.gigabytes, f"`{c.shown(small)}`") for c in commands]
    return table(["name", "minutes at most", "GB", "command"], rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [command.name for command in (*COMMANDS, *FURTHER)]
    parser.add_argument("--out", type=Path, help="a folder for outputs and summary.md")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument("--all", action="store_true", help="also the commands that need more time")
    parser.add_argument("--minutes", type=float, default=0.0, help="for all of them together; 0: the sum of theirs")
    parser.add_argument("--again", action="store_true", help="also what is done in this folder already")
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--list", action="store_true", help="show the commands, with the time and memory they may take")
    options = parser.parse_args(words)
    if options.out is None and not options.list:
        parser.error("--out FOLDER is missing")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """0 when every command was done."""
    options = arguments(words)
    offered = (*COMMANDS, *FURTHER) if options.all or options.only else COMMANDS
    chosen = [command for command in offered if command.name in options.only or not options.only]
    if options.list:
        print(listing(chosen, options.small))
        return 0
    minutes = options.minutes or sum(command.minutes for command in chosen)
    found = carry_out_all(chosen, options.out, options.small, minutes, options.again)
    print(f"\n{options.out / 'summary.md'}")
    return 0 if all(done.outcome == _DONE for done in found) else 1


if __name__ == "__main__":
    sys.exit(main())
