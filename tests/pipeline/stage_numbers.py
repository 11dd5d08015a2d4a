"""What the cached stages come to on a tiny world, and the record of it.

`python -m tests.pipeline.stage_numbers` writes the record anew; it refuses numbers that changed under an unchanged key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from src.core.data_utils import fingerprint
from src.core.documents import read_json_document
from src.core.paths import require_finished, write_json
from src.pipeline.cache import STAGE, StageRecord
from src.pipeline.stages import Stages
from src.pipeline.versions import VERSIONS
from tests.pipeline.toy import toy_stages

RECORD = Path(__file__).with_suffix(".json")

_SMALL = [
    "teacher.prompt.max_tokens=200", "teacher.prompt.history_titles=3", "teacher.encoder.width=8",
    "teacher.encoder.loop.epochs=2", "teacher.lora.rank=4", "teacher.train_rows=24",
    "teacher.train.loop.batch_size=8", "teacher.validation_rows=12", "teacher.export.budget=9",
    "teacher.tiny.width=16", "teacher.tiny.heads=2", "teacher.tiny.layers=1",
    "teacher.tiny.rows=40", "teacher.tiny.loop.epochs=1", "teacher.train.loop.epochs=2",
    # large steps: what is learned shows beside what was drawn
    *(f"teacher.train.{rate}=0.01" for rate in ("learning_rate", "projector_learning_rate")),
]  # fmt: skip
#: what is run, by name: the whole way to teacher outputs for each objective, students of each kind
TEACHERS = {
    "item_ce": [*_SMALL, "teacher.head.fit_rows=50", "teacher.train.head_learning_rate=0.01"],
    "title_lm": ["teacher=title", *_SMALL, "teacher.title.candidates=4"],
}
STUDENTS = {
    "transformer": [],
    "transformer_free": ["student.prior=none", "student.tied=false", "student.blocks=2", "student.loop.ema=0.0"],
    "sasrec": ["student=sasrec"],
    "sasrec_bce": ["student=sasrec", "student.loss=bce", "student.dro_weight=0.1"],
    "gru4rec": ["student=gru4rec", "student.width=8"],
    "caser": ["student=caser", "student.width=8", "student.num_filters=4"],
}

#: relative to a number's size, and to 1 for directions; torch's kernels for the oldest CPUs
#: (ATEN_CPU_CAPABILITY=default) gave numbers 0.0001 away
TOLERANCE = 2e-3
_DIRECTION = "direction"
#: what a manifest tells that changes with the weights and does not jump, as a metric of ranks does
_SMOOTH = ("train_loss", "log_likelihood", "gate_entropy")
_RANKED = ("candidates",)
#: hashes of bits in a stage's key, which another CPU may not reproduce; the stages that they stand for
_BITS = {"encoder": "encoder", "student": "encoder", "llm": "tiny_llm", "teacher": "teacher"}


@dataclass(frozen=True)
class Measured:
    """A stage's numbers, and a key of everything that its cache key is made of, bits of earlier stages aside."""

    key: str
    numbers: dict[str, float]


def differences(recorded: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Which numbers are not those of the record, beyond the tolerance, in words."""
    names = sorted(recorded.keys() | found.keys())
    return [
        f"{name}: {recorded.get(name)} recorded, {found.get(name)} found"
        for name in names
        if name not in recorded or name not in found or _apart(name, recorded[name], found[name]) > TOLERANCE
    ]


def _apart(name: str, recorded: float, found: float) -> float:
    size = 1 if name.endswith(_DIRECTION) else abs(recorded)
    return abs(recorded - found) / size if recorded != found else 0


def measure(root: Path) -> dict[str, Measured]:
    """Every case's stages, as ``case/stage``."""
    found = dict[str, Measured]()
    for case, overrides in STUDENTS.items():
        stages = toy_stages(root, *overrides)
        _ = stages.baseline, stages.closed_form("linear"), stages.outputs_of(["linear"])
        found |= _measured(case, stages)
    for case, overrides in TEACHERS.items():
        stages = toy_stages(root, *overrides)
        _ = stages.outputs_record
        found |= _measured(case, stages)
    stages = toy_stages(root, "student=sasrec")
    _ = stages.outputs_of(["self", "titles"])
    return found | _measured("other_teachers", stages)


def _measured(case: str, stages: Stages) -> dict[str, Measured]:
    keys = dict[str, str]()
    for record in stages.cache.records:
        determined_by = read_json_document(record.folder / STAGE)["determined_by"]
        earlier = {name: keys[stage] for name, stage in _BITS.items() if determined_by.get(name) and stage in keys}
        keys[record.name] = fingerprint(record.name, {**determined_by, **earlier})
    return {f"{case}/{r.name}": Measured(keys[r.name], numbers(r)) for r in stages.cache.records}


def numbers(record: StageRecord) -> dict[str, float]:
    """Of each file of arrays: their size together, and where they point; and what the manifest tells smoothly.

    Rankings are left out: a near tie may fall either way.
    """
    found = dict(_told(require_finished(record.folder)))
    files = (path for path in record.folder.rglob("*") if path.suffix in (".safetensors", ".npy"))
    for file in sorted(path for path in files if path.stem not in _RANKED):
        arrays = load_file(file).values() if file.suffix == ".safetensors" else [torch.from_numpy(np.load(file))]
        name = file.relative_to(record.folder).as_posix()
        flat = torch.cat([array.double().flatten() for array in arrays])
        if not len(flat):  # a student's labels come without embeddings
            continue
        waves = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        found[f"{name} size"] = float(flat.square().mean().sqrt())
        found[f"{name} {_DIRECTION}"] = float(flat @ waves / flat.norm())
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def _told(content: Any, at: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name in _SMOOTH:
                yield f"{at}{name}", float(value)
            elif name != "best_metrics":  # they stand in the history
                yield from _told(value, f"{at}{name} ")
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _told(value, f"{at}{place} ")


def load_record() -> dict[str, Measured]:
    """What was recorded, by case and stage."""
    return {name: Measured(**entry) for name, entry in json.loads(RECORD.read_text(encoding="utf-8")).items()}


def verdict(name: str, recorded: Measured | None, found: Measured) -> str:
    """What is wrong with a stage's numbers, and what to do; empty when nothing is."""
    record = "python -m tests.pipeline.stage_numbers"
    if recorded is None:
        return f"{name} is not recorded: {record}"
    changed = differences(recorded.numbers, found.numbers)
    if not changed:
        return ""
    told = "\n  ".join([f"the numbers of {name} changed:", *changed])
    if recorded.key != found.key:
        return f"{told}\ntheir key changed as well, so nothing old is reused; where that is meant: {record}"
    return f"{told}\nand their key did not: raise VERSIONS[{kind_of(name)!r}] (src/pipeline/versions.py), then {record}"


#: what a run calls a stage, where that is not its kind
KINDS = {"closed form": "closed_form", "labels of self": "student_outputs", "embeddings of titles": "title_outputs"}


def kind_of(name: str) -> str:
    """The key of `VERSIONS` that a stage falls under."""
    stage = name.partition("/")[2]
    return KINDS.get(stage.partition(":")[0], stage if stage in VERSIONS else "student")


def anew(recorded: Mapping[str, Measured], found: Mapping[str, Measured]) -> dict[str, Measured]:
    """The next record: numbers that are close stay as they were recorded.

    Raises:
        ValueError: numbers changed, and their key did not.
    """
    wrong = [
        verdict(name, recorded[name], entry)
        for name, entry in found.items()
        if name in recorded and recorded[name].key == entry.key
    ]
    if any(wrong):
        raise ValueError("\n".join(text for text in wrong if text))
    return {name: _settled(recorded.get(name), entry) for name, entry in found.items()}


def _settled(recorded: Measured | None, found: Measured) -> Measured:
    if recorded is None or differences(recorded.numbers, found.numbers):
        return found
    return Measured(found.key, recorded.numbers)


def main() -> None:
    """Write the record; leaves with 1 where a version must be raised first."""
    with TemporaryDirectory() as root:
        found = measure(Path(root))
    try:
        record = anew(load_record() if RECORD.exists() else {}, found)
    except ValueError as error:
        sys.exit(str(error))
    write_json(RECORD, {name: asdict(entry) for name, entry in record.items()})


if __name__ == "__main__":
    main()
