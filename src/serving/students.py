"""A student that can be asked, from an exported folder (ONNX Runtime) or from a result folder (PyTorch)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort
from pydantic.dataclasses import dataclass as document

from src.core.checkpoints import load_weights
from src.core.checksums import verify_files
from src.core.documents import PARTIAL, conform, read_mapping
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, require_finished
from src.core.result_files import BEST_STUDENT
from src.data.id_map import IdMap
from src.data.item_text import TextSource
from src.serving.catalogue import Catalogue, padded
from src.serving.graph_names import EXCLUDE_SEEN, HISTORY, ITEMS, LENGTH, SCORES, K
from src.student.artefact import ID_MAP, WEIGHTS, ModelFacts, fingerprints_of, load_student, text_source_of
from src.student.base import Recommender, SequenceStudent, recent
from src.student.models import build_closed_form, build_recommender, student_settings
from src.student.settings import StudentSettings

#: the kind of an exported folder, in its manifest
EXPORTED = "exported_student"
GRAPH, CATALOGUE, CONFIG = "model.onnx", "id_map.parquet", "config.json"
#: in an export, the student as it was saved, where it takes items that are added later: a graph cannot
GROWING = "student"

#: what ONNX Runtime says of a file that it cannot run; its errors have no family of their own
_UNREADABLE = (
    OSError, RuntimeError, ValueError, ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf,
    ort.NoSuchFile, ort.NotImplemented,
)  # fmt: skip

_EXPORT_AGAIN = "python -m src.exp.export result=FOLDER makes it again"


@dataclass(frozen=True)
class Recommendation:
    """An item with its score; a greater one is better."""

    item: str
    title: str
    score: float


class ServedStudent(ABC):
    """Names the best items for histories.

    ``name`` is what people call it; ``fingerprints`` are those of the data that it was trained on.
    """

    name: str
    catalogue: Catalogue
    fingerprints: dict[str, str]
    #: whether every item is scored; an index names candidates, all of which may have been seen
    scores_all = True

    def best(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best items ``[B, k]`` of each history and their scores ``[B, k]``, best first.

        Args:
            history: ``[B, L]`` item indices of any width, padded on the right with V.
            length: ``[B]``.
            k: from 1 to V.
            exclude_seen: give the items of the history the score −∞.

        Raises:
            ArtefactError: the scores are no numbers: the student's weights are damaged.
        """
        items, scores = self.ranked(history, length, k, exclude_seen)
        wrong: NDArray[np.bool_] = np.any(np.isnan(scores) | np.isposinf(scores), axis=1)
        if self.scores_all:
            for row in np.flatnonzero((scores == -np.inf).all(axis=1)):
                # −∞ alone is right only for who has seen the whole catalogue
                seen = len(np.unique(history[row, : length[row]])) if exclude_seen else 0
                wrong[row] = seen < self.catalogue.num_items
        if wrong.any():
            first = float(scores[int(wrong.argmax())][0])
            count = f"{int(wrong.sum()):,} of {len(wrong):,} histories"
            rule = f"its scores are no finite numbers for {count}, {first} for one"
            raise ArtefactError.one("student", self.name, rule, "its weights are damaged: train it again")
        return items, scores

    @abstractmethod
    def ranked(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `best` looks at: the same, whatever the scores are."""

    def recommend(self, history: list[int], k: int, exclude_seen: bool) -> list[Recommendation]:
        """The best items for one history of item indices; fewer than k where less is left."""
        items, scores = self.best(*padded([history], self.catalogue.num_items), k, exclude_seen)
        return self.named(items[0], scores[0])

    def named(self, items: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Recommendation]:
        """Items by raw id and title, without those that were excluded."""
        raw_ids, titles = self.catalogue.id_map.raw_ids, self.catalogue.id_map.titles
        return [
            Recommendation(raw_ids[item], titles[item], float(score))
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
            if np.isfinite(score)
        ]


@document(frozen=True, config=PARTIAL)
class _Exported:
    """What is read of an export's `config.json`."""

    name: str
    fingerprints: dict[str, str]


class GraphStudent(ServedStudent):
    """An exported student, run by ONNX Runtime."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Raises ``ArtefactError`` for a folder that holds something else than an export."""
        config = read_mapping(folder / CONFIG, _Exported, _EXPORT_AGAIN)
        self.name, self.fingerprints = config.name, config.fingerprints
        self.catalogue = Catalogue.load(folder / CATALOGUE)
        self.session = _session(folder / GRAPH, threads)

    def ranked(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `ServedStudent.ranked`."""
        asked = {
            HISTORY: history,
            LENGTH: length,
            K: np.array([k], dtype=np.int64),
            EXCLUDE_SEEN: np.array([exclude_seen]),
        }
        items, scores = self.session.run([ITEMS, SCORES], asked)
        return items, scores


def _session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """A graph, ready to be run; raises ``ArtefactError`` for one that ONNX Runtime cannot read, or another one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        raise ArtefactError.one("graph", str(graph), f"cannot be read ({error})", _EXPORT_AGAIN) from None
    asked, given = {one.name for one in session.get_inputs()}, {one.name for one in session.get_outputs()}
    if asked != {HISTORY, LENGTH, K, EXCLUDE_SEEN} or not {ITEMS, SCORES} <= given:
        rule = f"is no student's: it takes {', '.join(sorted(asked))} and gives {', '.join(sorted(given))}"
        raise ArtefactError.one("graph", str(graph), rule, _EXPORT_AGAIN)
    return session


class ModelStudent(ServedStudent):
    """A student as it was trained, run by PyTorch."""

    def __init__(
        self,
        model: Recommender,
        catalogue: Catalogue,
        name: str,
        fingerprints: dict[str, str],
        settings: StudentSettings | None = None,
        text_source: TextSource | None = None,
    ) -> None:
        self.model, self.catalogue, self.name, self.fingerprints = model.eval(), catalogue, name, fingerprints
        #: what it was built from, and where the embeddings come from of which it scores new items
        self.settings, self.text_source = settings or StudentSettings(), text_source

    @torch.no_grad()
    def ranked(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `ServedStudent.ranked`."""
        seen, many = padded_for(self.model, history, length)
        scores = self.model(*_latest(seen, many, self.model))
        if exclude_seen:
            padding = scores.new_zeros(len(scores), 1)
            scores = torch.cat([scores, padding], dim=1).scatter(1, seen, float("-inf"))[:, :-1]
        values, items = _best(scores, k)
        return items.cpu().numpy(), values.float().cpu().numpy()


def _best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest scores of each row and their items; of equal ones the lower index comes first, as in the graph."""
    found = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (found.values[:, 1:] == found.values[:, :-1]).any(dim=1)
    values, items = found.values[:, :k].clone(), found.indices[:, :k].clone()
    if bool(tied.any()):
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], items[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return values, items


def padded_for(
    model: Recommender, history: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories and lengths on the model's device, at least as wide as it looks back.

    Args:
        model: whose padding id and width count.
        history: ``[B, L]`` item indices, padded on the right.
        length: ``[B]``.
    """
    width = max(1, model.history_length, history.shape[1])
    wide = np.full((len(history), width), model.padding_id, dtype=np.int64)
    wide[:, : history.shape[1]] = history
    seen = torch.from_numpy(wide).to(model.device)
    return seen, torch.from_numpy(length).to(seen.device)


def _latest(history: torch.Tensor, length: torch.Tensor, model: Recommender) -> tuple[torch.Tensor, torch.Tensor]:
    """The last items that a model looks at, exactly as wide as it wants them."""
    return recent(history, length, max(1, model.history_length), model.padding_id)


def open_student(folder: Path, threads: int = 0, field: str = "student", growing: bool = False) -> ServedStudent:
    """The student that a folder holds.

    Args:
        folder: an exported folder, a result folder, or the `best_student` in one.
        threads: how many ONNX Runtime computes with; 0: as many as there are cores.
        field: what an error calls the folder.
        growing: whether it must take new items: an export of a student that does holds it as PyTorch runs it, too.

    Raises:
        ArtefactError: the folder is missing, unfinished, changed since it was written, or holds no student.
    """
    manifest = require_finished(folder)
    if manifest.get("kind") == EXPORTED:
        verify_export(folder, manifest)
        if growing and (folder / GROWING).is_dir():
            name = read_mapping(folder / CONFIG, _Exported, _EXPORT_AGAIN).name
            grown = model_student(folder / GROWING, name)
            grown.catalogue = Catalogue.load(folder / CATALOGUE)
            return grown
        return GraphStudent(folder, threads)
    place = folder if manifest.get("kind") == "student" and (folder / ID_MAP).is_file() else folder / BEST_STUDENT
    if not place.is_dir():
        step = "name an exported folder, or a result of run_student_baseline, run_distill, tune_student or tune_distill"
        raise ArtefactError.one(field, str(folder), "holds no student", step)
    return model_student(place, folder.name)


def model_student(folder: Path, name: str) -> ModelStudent:
    """A saved student in PyTorch; raises ``ArtefactError`` as `load_student` does."""
    model, settings = load_student(folder)
    catalogue = Catalogue(IdMap.load(folder / ID_MAP))
    return ModelStudent(model, catalogue, name, fingerprints_of(folder), settings, text_source_of(folder))


def as_model(student: ServedStudent, folder: Path) -> ModelStudent:
    """A student in PyTorch: of an export what its weights and its `config.json` tell.

    Raises:
        ArtefactError: they do not fit each other.
        ConfigError: the `config.json` names code that came with it, which is not run.
    """
    if isinstance(student, ModelStudent):
        return student
    config = read_mapping(folder / CONFIG, dict[str, Any], _EXPORT_AGAIN)
    weights = load_weights(folder / WEIGHTS)
    facts = conform(config, ModelFacts, folder / CONFIG, _EXPORT_AGAIN)
    of_prior = {name.removeprefix("prior."): value for name, value in weights.items() if name.startswith("prior.")}
    of_scale = weights.pop("prior_scale", torch.tensor(1.0))
    own = {name: value for name, value in weights.items() if not name.startswith("prior.")}
    try:
        model = build_recommender(facts.settings, facts.num_items, facts.window)
        if of_prior and isinstance(model, SequenceStudent):
            settings = student_settings(**config["prior_settings"])
            prior = build_closed_form(settings, facts.num_items, config.get("prior_window", facts.window))
            prior.load_state_dict(of_prior)
            if not 0 < (scale := of_scale.item()) < math.inf:
                raise ValueError(f"prior_scale = {scale}: must be finite and above 0")
            model.add_prior(prior.eval(), scale)
        model.load_state_dict(own)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ArtefactError.one("weights", str(folder), f"do not fit {CONFIG} ({error})", _EXPORT_AGAIN) from None
    return ModelStudent(model.eval(), student.catalogue, student.name, student.fingerprints, facts.settings)


def verify_export(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises ``DamagedArtefact`` where an exported folder is not as it was written."""
    checksums = manifest.get("files")
    if not isinstance(checksums, dict) or GRAPH not in checksums:
        rule = f"does not tell what {GRAPH} held"
        raise ArtefactError.one("student", str(folder / MANIFEST), rule, _EXPORT_AGAIN)
    verify_files(folder, checksums, _EXPORT_AGAIN)


def require_k(student: ServedStudent, k: int, field: str = "k") -> None:
    """Look at how many items are wanted.

    Args:
        student: whose catalogue counts.
        k: how many.
        field: what an error calls the number.

    Raises:
        ConfigError: the catalogue has fewer.
    """
    if k > student.catalogue.num_items:
        rule = f"must not exceed the {student.catalogue.num_items} items of the catalogue"
        raise ConfigError.one(field, k, rule, f"{field}={student.catalogue.num_items} or less")


def require_same_catalogue(students: list[ServedStudent], field: str = "students") -> None:
    """Raises ``ConfigError`` where students do not know the same items under the same indices."""
    first = students[0]
    for other in students[1:]:
        # their texts may differ: an export keeps ids and titles alone
        if other.catalogue.id_map.raw_ids != first.catalogue.id_map.raw_ids:
            rule = f"knows other items than {first.name}"
            raise ConfigError.one(field, other.name, rule, "serve students of one catalogue together")
