"""What every trial of a search reads, in one memory-mapped file: in memory once, however many trials run
(out of a bucket, each trial fetches a copy).

The mapping is private: a trial that writes into a tensor changes its own copy of that page, never another's data
(measured: numpy arrays out of Ray's object store are writable shared memory).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
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
from src.data.item_text import TextSource
from src.data.teacher_outputs import OutputsByTeachers
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows, align
from src.student.datamodule import StudentData
from src.student.prior import Prior, load_prior, save_prior
from src.tuning.store import Store

FOLDER = "data"
_TENSORS, _ID_MAP, _FACTS, _PRIOR = "tensors.safetensors", "id_map.json", "facts.json", "prior"
_EMBEDDING = ".sequence_embedding"
#: smaller ones move to the GPU, where a step reads them without a wait; larger ones stay, see `TeachingRows`
_LARGE = 256 * 2**20


@document(frozen=True, config=PARTIAL)
class _Facts:
    """What stands beside the tensors."""

    fingerprints: dict[str, str]
    history_length: int
    teachers: list[str]
    text_source: TextSource | None = None
    other_priors: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SharedData:
    """A dataset without its test split, and what each teacher said (`teaching_key`); none in a search of students."""

    students: StudentData
    teaching: Mapping[str, TeachingRows]
    id_map: IdMap
    fingerprints: dict[str, str]
    #: where embeddings of items' texts come from, for a student that keeps how it scores an item from its text
    text_source: TextSource | None = None

    @classmethod
    def of(
        cls,
        data: SequenceData,
        outputs: OutputsByTeachers,
        prior: Prior | None = None,
        item_text: Tensor | None = None,
        text_source: TextSource | None = None,
        other_priors: Mapping[str, Callable[[], Prior]] | None = None,
    ) -> SharedData:
        """Make what trials share from a loaded dataset.

        Args:
            data: the dataset.
            outputs: the teachers' labels, by teacher; empty in a search without one.
            prior: of the student, where it has one.
            item_text: embeddings of the items' texts ``[V, W]``; None for students that read none.
            text_source: says how an item's text is embedded, for items that come later.
            other_priors: priors that a trial may have instead, by architecture, each read when it is asked for.

        Raises:
            ArtefactError: some outputs label other examples.
        """
        teaching = {name: align(found, data.train, found.candidates.shape[1], "cpu") for name, found in outputs.items()}
        students = StudentData.of(data, "cpu", prior, item_text, other_priors)
        return cls(students, teaching, data.id_map, data.fingerprints(), text_source)

    def save(self, store: Store) -> None:
        """Put it into the store, under `data/`; raises ``Paused`` when it cannot be written."""
        students = self.students
        tensors = {"propensity": students.propensity, "item_counts": students.item_counts}
        if students.item_text is not None:
            tensors["item_text"] = students.item_text
        for split, examples in (("train", students.train), ("validation", students.validation)):
            tensors |= {f"{split}.{name}": tensor for name, tensor in examples.tensors().items()}
        for name, rows in self.teaching.items():
            tensors |= {f"teaching.{name}.{field.name}": getattr(rows, field.name) for field in fields(TeachingRows)}
        with store.scratch() as folder:
            target = Path(folder)
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / _TENSORS)
            except SafetensorError as error:  # a full disk, too, is told this way
                raise Paused(f"the trials' data cannot be written ({error})") from None
            self.id_map.save(target / _ID_MAP)
            if students.prior is not None:
                (target / _PRIOR).mkdir()
                save_prior(target / _PRIOR, students.prior)
            for name, read in students.other_priors.items():
                (target / _other(name)).mkdir()
                save_prior(target / _other(name), read())
            write_json(
                target / _FACTS,
                {
                    "fingerprints": self.fingerprints,
                    "history_length": students.history_length,
                    "teachers": list(self.teaching),
                    "other_priors": list(students.other_priors),
                    "text_source": None if self.text_source is None else asdict(self.text_source),
                },
            )
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
        tensors = {
            name: tensor if name.endswith(_EMBEDDING) and tensor.nbytes > _LARGE else tensor.to(device)
            for name, tensor in mapped.items()
        }

        def part(prefix: str) -> dict[str, Tensor]:
            names = (name for name in tensors if name.startswith(f"{prefix}."))
            return {name.removeprefix(f"{prefix}."): tensors[name] for name in names}

        prior = load_prior(folder / _PRIOR, device) if (folder / _PRIOR).is_dir() else None
        try:
            students = StudentData(
                train=TensorExamples.of_tensors(part("train")),
                validation=TensorExamples.of_tensors(part("validation")),
                num_items=id_map.num_items,
                history_length=facts.history_length,
                propensity=tensors["propensity"],
                item_counts=tensors["item_counts"],
                prior=prior,
                item_text=tensors.get("item_text"),
                # read once, for all members of a population
                other_priors={
                    name: cache(partial(load_prior, folder / _other(name), device)) for name in facts.other_priors
                },
            )
            taught = {name: TeachingRows(**part(f"teaching.{name}")) for name in facts.teachers}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # a name missing or unknown, no single number
            raise _damaged(folder, str(error)) from None
        for examples in (students.train, students.validation):
            if not _within_bounds(examples, id_map.num_items):
                raise _damaged(folder, "an example points outside")
        return cls(students, taught, id_map, facts.fingerprints, facts.text_source)

    def taught(self, teachers: Sequence[str], topk: int) -> TeachingRows:
        """What some teachers said; raises ``ArtefactError`` where they said nothing, or less than ``topk`` a row."""
        rows = self.teaching.get(teaching_key(teachers))
        if rows is None:
            raise ArtefactError.one(
                "distill.teachers", list(teachers), "this search was started without these teachers"
            )
        rows.require(topk)
        return rows


def _other(name: str) -> str:
    """The folder of a prior that a student may have in place of its own."""
    return f"{_PRIOR}.{name}"


def teaching_key(teachers: Sequence[str]) -> str:
    """The name under which what these teachers say together is kept."""
    return "+".join(teachers)


def _within_bounds(examples: TensorExamples, num_items: int) -> bool:
    """Whether every history lies within the items, and every item in the catalogue: nothing is read from elsewhere."""
    rows = (examples.end, examples.earlier, examples.target, examples.example_id, examples.timestamp)
    whole = (examples.items, *rows[:-1])
    return (
        all(tensor.dim() == 1 and not tensor.is_floating_point() for tensor in whole)
        and len({tensor.shape for tensor in rows}) == 1
        and examples.window >= 1
        and examples.padding_id == num_items
        and bool(((examples.earlier >= 0) & (examples.earlier <= examples.end)).all())
        and bool((examples.end <= len(examples.items)).all())
        and all(bool(((ids >= 0) & (ids < num_items)).all()) for ids in (examples.items, examples.target))
    )


def _damaged(folder: Path, why: str) -> ProblemsFound:
    return ArtefactError.one("trials' data", str(folder / _TENSORS), f"is damaged ({why})", "resume: it is made anew")
