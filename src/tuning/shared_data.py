"""What every trial of a search reads, in one memory-mapped file: in memory once, however many trials run
(out of a bucket, each trial fetches a copy).

The mapping is private: a trial that writes into a tensor changes its own copy of that page, never another's data
(measured: numpy arrays out of Ray's object store are writable shared memory).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass as document
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.core.documents import PARTIAL, read_mapping
from src.core.errors import ArtefactError, Paused, ProblemsFound
from src.core.paths import write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.data.teacher_outputs import TeacherOutputs
from src.distill.data_bridge import TeachingRows, align
from src.student.datamodule import StudentData, TensorExamples
from src.tuning.store import Store

FOLDER = "data"
_TENSORS, _ID_MAP, _FACTS = "tensors.safetensors", "id_map.json", "facts.json"
_ON_THE_HOST = "teaching.sequence_embedding"  # see `TeachingRows`


@document(frozen=True, config=PARTIAL)
class _Facts:
    """What stands beside the tensors."""

    fingerprints: dict[str, str]
    history_length: int


@dataclass(frozen=True, eq=False)
class SharedData:
    """A dataset without its test split, and what the teacher said. ``teaching`` is None where there is no teacher."""

    students: StudentData
    teaching: TeachingRows | None
    id_map: IdMap
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, data: SequenceData, outputs: TeacherOutputs | None) -> SharedData:
        """From a loaded dataset; raises ``ArtefactError`` when the outputs label other examples."""
        teaching = None if outputs is None else align(outputs, data.train, outputs.candidates.shape[1], "cpu")
        return cls(StudentData.of(data, "cpu"), teaching, data.id_map, data.fingerprints())

    def save(self, store: Store) -> None:
        """Put it into the store, under `data/`; raises ``Paused`` when it cannot be written."""
        students = self.students
        tensors = {"propensity": students.propensity}
        for split, examples in (("train", students.train), ("validation", students.validation)):
            tensors |= {f"{split}.{field.name}": getattr(examples, field.name) for field in fields(examples)}
        if self.teaching is not None:
            tensors |= {f"teaching.{field.name}": getattr(self.teaching, field.name) for field in fields(TeachingRows)}
        with store.scratch() as folder:
            target = Path(folder)
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / _TENSORS)
            except SafetensorError as error:  # a full disk, too, is told this way
                raise Paused(f"the trials' data cannot be written ({error})") from None
            self.id_map.save(target / _ID_MAP)
            write_json(target / _FACTS, {"fingerprints": self.fingerprints, "history_length": students.history_length})
            store.upload(target, FOLDER)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> SharedData:
        """Map what `save` wrote; what a step reads gets a copy of its own on a GPU."""
        facts = read_mapping(folder / _FACTS, _Facts)
        id_map = IdMap.load(folder / _ID_MAP)
        try:
            mapped = load_file(folder / _TENSORS)
        except (SafetensorError, OSError) as error:
            raise _damaged(folder, str(error)) from None
        tensors = {name: tensor if name == _ON_THE_HOST else tensor.to(device) for name, tensor in mapped.items()}

        def part(prefix: str) -> dict[str, Tensor]:
            names = (name for name in tensors if name.startswith(f"{prefix}."))
            return {name.removeprefix(f"{prefix}."): tensors[name] for name in names}

        try:
            students = StudentData(
                train=TensorExamples(**part("train")),
                validation=TensorExamples(**part("validation")),
                num_items=id_map.num_items,
                history_length=facts.history_length,
                propensity=tensors["propensity"],
            )
            taught = part("teaching")
            teaching = TeachingRows(**taught) if taught else None
        except (KeyError, TypeError) as error:  # a name that is missing, or that nobody knows
            raise _damaged(folder, str(error)) from None
        return cls(students, teaching, id_map, facts.fingerprints)

    def taught(self, topk: int) -> TeachingRows:
        """The teacher's first ``topk`` candidates; raises ``ArtefactError`` without a teacher or with fewer."""
        if self.teaching is None:
            raise ArtefactError.one("teacher outputs", None, "this search was started without a teacher")
        return self.teaching.first(topk)


def _damaged(folder: Path, why: str) -> ProblemsFound:
    return ArtefactError.one("trials' data", str(folder / _TENSORS), f"is damaged ({why})", "resume: it is made anew")
