"""Training speed of our SASRec beside RecBole 1.2.1's, at the same settings, in one run on the CPU.

Width 64, one block, one head, window 10, one negative a row, batch 256, dropout 0.1, Adam 1e-3, ML-100K. Ours is BCE;
RecBole's loss with one negative is BPR. An epoch of each side in turn; the table gives each side's median examples per
second (an example is one history with its target) and their ratio. Goal: 4. Evaluation is outside the clock.

Two threads need two idle cores: beside another busy process RecBole's side, with its many small kernels, waits for its
second thread longer than it computes, and the ratio then flatters us.

RecBole needs an environment of its own:

    python3 -m venv recbole-env
    recbole-env/bin/pip install torch==2.13.0 "numpy<2" "pandas<2.2" "scipy<1.13" recbole==1.2.1 "setuptools<81"
    python -m benchmarks.student_vs_recbole --recbole-python recbole-env/bin/python --data PATH/ml-100k

`PATH/ml-100k` holds `ml-100k.inter` and `ml-100k.item` (RecBole's atomic files).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from src.core.data_utils import shuffled_batches
from src.core.seed import torch_generator
from src.core.training import train_step
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.student.datamodule import StudentData
from src.student.models import student_settings
from src.student.objectives import StudentObjective, negative_sampler
from src.student.trainer_baseline import new_student


def our_epochs(root: Path, threads: int) -> Iterator[float]:
    """Examples per second of one epoch after another of our loop's own steps."""
    torch.set_num_threads(threads)
    loaded = load_dataset(DatasetSettings(adapter="recbole", root=root, name=root.name))
    data = StudentData.of(loaded, "cpu")
    settings = student_settings("sasrec", loss="bce", negatives=1)
    student = new_student(settings, data, seed=42)
    student.train()
    objective = StudentObjective(student, data, settings, negative_sampler(data, 1, torch_generator(42, "negatives")))
    optimiser = torch.optim.Adam(student.parameters(), settings.learning_rate, fused=True)
    order = torch_generator(42, "order")
    while True:
        start = time.perf_counter()
        for rows in shuffled_batches(len(data.train), settings.loop.batch_size, order, data.device):
            train_step(objective, optimiser, rows)
        yield len(data.train) / (time.perf_counter() - start)


def recbole_epochs(python: Path, root: Path, threads: int) -> Iterator[float]:
    """The same of RecBole's trainer, in its own process."""
    command = [
        str(python.absolute()),
        str(Path(__file__).with_name("recbole_side.py")),
        str(root.parent),
        root.name,
        str(threads),
    ]
    # RecBole writes logs into its working folder
    with (
        tempfile.TemporaryDirectory() as scratch,
        (Path(scratch) / "errors.txt").open("w+") as errors,
        subprocess.Popen(
            command, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while True:
                process.stdin.write("\n")
                process.stdin.flush()
                line = next((text for text in process.stdout if text.startswith("{")), None)
                if line is None:
                    errors.seek(0)
                    raise SystemExit(f"RecBole ended with code {process.wait()}: {errors.read()[-2000:]}")
                measured = json.loads(line)
                yield measured["rows"] / measured["seconds"]
        finally:
            process.stdin.close()


def compare(python: Path, root: Path, threads: int, rounds: int) -> tuple[list[float], list[float]]:
    """Epochs of both sides in turn; the first of each warms up and is left out."""
    ours, theirs = our_epochs(root, threads), recbole_epochs(python, root, threads)
    next(ours), next(theirs)
    pairs = [(next(ours), next(theirs)) for _ in range(rounds)]
    theirs.close()
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole-python", type=Path, required=True, help="interpreter of RecBole's environment")
    parser.add_argument("--data", type=Path, required=True, help="folder with ml-100k.inter and ml-100k.item")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print("| threads | ours, examples/s | RecBole 1.2.1, examples/s | ratio of medians | ratios |")
    print("|---|---|---|---|---|")
    for threads in arguments.threads:
        ours, theirs = compare(arguments.recbole_python, arguments.data.resolve(), threads, arguments.rounds)
        ratio = statistics.median(ours) / statistics.median(theirs)
        each = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
        print(
            f"| {threads} | {statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | {ratio:.2f} | {each} |"
        )


if __name__ == "__main__":
    main()
