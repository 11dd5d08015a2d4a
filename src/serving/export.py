"""A finished result's student as a folder that anybody can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from src.core.checkpoints import save_weights
from src.core.checksums import checksum_files
from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import console, get_logger
from src.core.paths import MANIFEST, atomic_folder, require_finished, require_writable, write_json, write_text
from src.core.settings import STRICT
from src.data.examples import Examples, SequenceData
from src.data.id_map import IdMap
from src.data.item_text import TextSource
from src.serving.card import model_card
from src.serving.catalogue import Catalogue, padded
from src.serving.graph import export_graph
from src.serving.hub import push
from src.serving.new_items import EmbedTexts, add_items, open_new_items, read_new_items, require_takes_items
from src.serving.quantise import quantise_graph
from src.serving.results import StudentResult, require_given
from src.serving.students import CATALOGUE, CONFIG, EXPORTED, GRAPH, GROWING, GraphStudent, ModelStudent, model_student
from src.student.artefact import ID_MAP, WEIGHTS, fingerprints_of, save_student
from src.student.base import ClosedForm, Recommender, SequenceStudent
from src.student.new_items import takes_items
from src.student.settings import StudentSettings

_log = get_logger(__name__)

#: how far the graph's scores may lie from PyTorch's
TOLERANCE = 1e-4
#: how many validation examples decide what 8-bit weights cost
_MOST_EXAMPLES = 20_000
_BATCH = 256


@settings_dataclass(frozen=True, config=STRICT)
class ExportStudentSettings:
    """Which result's student, where to, and in which form."""

    result: Annotated[Path | None, Field(description="a finished result folder that holds a student")] = None
    out: Annotated[
        Path | None, Field(description="the folder to write, which must not exist; null: student/ in this run's result")
    ] = None
    new_items: Annotated[
        Path | None,
        Field(description="items that came after training, to be folded in (see recommend): a graph takes none later"),
    ] = None
    encoder: Annotated[
        str, Field(description="where the student's language model lies now; empty: where it lay in training")
    ] = ""
    name: Annotated[str, Field(description="what the model card calls it; empty: the result's name")] = ""
    quantise: Annotated[
        Literal["none", "int8"], Field(description="int8: weights as 8-bit whole numbers, the loss measured")
    ] = "none"
    push_to_hub: Annotated[
        str, Field(description="a model repository of the Hugging Face Hub, owner/name; empty: none")
    ] = ""


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """What `check_export` found: the result, its student, and its data where they can still be read."""

    result: StudentResult
    student: Recommender
    id_map: IdMap
    data: SequenceData | None
    settings: StudentSettings
    text_source: TextSource | None

    @property
    def added(self) -> int:
        """How many items came after training."""
        return self.id_map.num_items - IdMap.load(self.result.student / ID_MAP).num_items


def check_export(settings: ExportStudentSettings, embed: EmbedTexts | None = None) -> ExportPlan:
    """Everything that can be known to be wrong before anything is written.

    Args:
        settings: what was asked for.
        embed: reaches the language model of new items.

    Raises:
        ConfigError: no result is named, ``out`` exists or cannot be written, or 8-bit weights cannot be measured
            without the data.
        ArtefactError: the result is unfinished, damaged, or holds no student.
    """
    result = StudentResult.read(require_given("result", settings.result, "result=result/result_…"))
    if (
        settings.out is not None
        and settings.out.exists()
        and (not settings.out.is_dir() or any(settings.out.iterdir()))
    ):
        raise ConfigError.one("out", str(settings.out), "exists and is not empty", "name a new folder")
    if settings.out is not None:
        require_writable(settings.out, "out")
    if settings.push_to_hub and settings.push_to_hub.count("/") != 1:
        raise ConfigError.one("push_to_hub", settings.push_to_hub, "must be owner/name", "push_to_hub=owner/name")
    student = model_student(result.student, result.folder.name)
    if settings.new_items is not None and embed is not None:
        source = require_takes_items(student)
        new = read_new_items(open_new_items(settings.new_items), student.catalogue, source)
        student = add_items(student, new, embed)
    data, why = result.data_or_none()
    if data is None:
        if settings.quantise != "none":
            rule = f"its loss is measured on the validation split, which cannot be read: {why}"
            raise ConfigError.one("quantise", settings.quantise, rule, "restore the data, or use quantise=none")
        _log.warning("how often each item occurs is left out, because the data cannot be read: %s", why)
    id_map = student.catalogue.id_map
    return ExportPlan(result, student.model, id_map, data, student.settings, student.text_source)


def export_student(settings: ExportStudentSettings, plan: ExportPlan, folder: Path) -> dict[str, Any]:
    """Write the folder, whole or not at all; returns its `config.json`.

    Args:
        settings: which form.
        plan: from `check_export`.
        folder: where to.

    Raises:
        TrainingFailed: the graph's scores are not PyTorch's.
    """
    name = settings.name or plan.result.folder.name
    counts = None if plan.data is None else np.pad(plan.data.item_counts, (0, plan.added))
    with atomic_folder(folder) as target:
        Catalogue(plan.id_map, counts).save(target / CATALOGUE)
        save_weights(target / WEIGHTS, all_weights(plan.student))
        export_graph(plan.student, target / GRAPH)
        if takes_items(plan.student) and plan.text_source is not None:
            chosen = plan.student.settings if isinstance(plan.student, ClosedForm) else plan.settings
            fingerprints = fingerprints_of(plan.result.student)
            save_student(target / GROWING, plan.student, chosen, plan.id_map, fingerprints, {}, plan.text_source)
        config = {"name": name, **_facts(plan)}
        write_json(target / CONFIG, config)
        config |= _compared(plan, target)
        if settings.quantise == "int8":
            assert plan.data is not None  # see `check_export`
            config |= _quantised(target, plan.data.validation)
        write_json(target / CONFIG, config)
        write_text(target / "README.md", model_card(config, plan.result.comparison, plan.id_map.raw_ids))
        write_json(target / MANIFEST, {"kind": EXPORTED, "version": 1, "files": checksum_files(target)})
    if settings.push_to_hub:
        push(folder, settings.push_to_hub)
    return config


def all_weights(student: Recommender) -> dict[str, torch.Tensor]:
    """Every tensor of a student; those of its prior are named ``prior.…``, and ``prior_scale`` stands beside them."""
    weights = dict(student.state_dict())
    if isinstance(student, SequenceStudent) and student.prior is not None:
        weights |= {f"prior.{name}": tensor for name, tensor in student.prior.state_dict().items()}
        weights["prior_scale"] = torch.tensor(student.prior_scale)
    return weights


def _facts(plan: ExportPlan) -> dict[str, Any]:
    """What is told about a student wherever it goes."""
    manifest = require_finished(plan.result.student)
    prior = plan.student.prior if isinstance(plan.student, SequenceStudent) else None
    run = plan.result.manifest
    return {
        "architecture": manifest["settings"]["architecture"],
        "settings": manifest["settings"],
        "prior": None if prior is None else prior.settings.architecture,
        "prior_settings": None if prior is None else asdict(prior.settings),
        "prior_window": None if prior is None else prior.window,
        "dataset": plan.data.name if plan.data else "its data could not be read",
        "num_items": plan.student.num_items,
        "items_added": plan.added,
        "takes_new_items": takes_items(plan.student) and plan.text_source is not None,
        "window": plan.student.window,
        "history_length": plan.student.history_length,
        "fingerprints": fingerprints_of(plan.result.student),
        "source": {
            "kind": run.get("kind"),
            "finished": run.get("finished"),
            "seed": run.get("seed"),
            "revision": (run.get("git") or {}).get("revision"),
        },
        "quantisation": None,
    }


def _compared(plan: ExportPlan, folder: Path) -> dict[str, Any]:
    """How far the graph's scores lie from PyTorch's, over all items and over histories of every kind of length."""
    num_items = plan.student.num_items
    histories = sample_histories(num_items, plan.student.history_length)
    history, length = padded(histories, num_items)
    by_item = []
    for student in (GraphStudent(folder, 0), ModelStudent(plan.student, Catalogue(plan.id_map), "", {})):
        items, scores = student.best(history, length, num_items, False)
        by_item.append(np.take_along_axis(scores, np.argsort(items, axis=1), axis=1))
    largest = float(np.abs(by_item[0] - by_item[1]).max())
    scale = max(1.0, float(np.abs(by_item[1]).max()))
    if not largest <= TOLERANCE * scale:
        raise TrainingFailed(f"the exported graph's scores differ from PyTorch's by {largest:.2g}: nothing was written")
    return {"largest_difference": largest, "rows_compared": len(histories)}


def sample_histories(num_items: int, width: int) -> list[list[int]]:
    """Histories of drawn items: none, one, as many as a student reads, and more than that."""
    random = np.random.default_rng(0)
    lengths = sorted({0, 1, 2, width // 2, max(1, width - 1), width, width + 1, 2 * width + 3})
    return [random.integers(0, num_items, length).tolist() for length in lengths]


def _quantised(folder: Path, validation: Examples) -> dict[str, Any]:
    """Replace the graph by one with 8-bit weights; tells what that costs on validation."""
    examples = validation.take(np.arange(min(len(validation), _MOST_EXAMPLES)))
    k = min(20, GraphStudent(folder, 0).catalogue.num_items)
    before = served_ndcg(GraphStudent(folder, 0).best, examples, k)
    quantise_graph(folder / GRAPH)
    after = served_ndcg(GraphStudent(folder, 0).best, examples, k)
    change = after / before - 1 if before else 0.0
    _log.info("int8: validation NDCG@%d %.4f instead of %.4f (%+.2f %%)", k, after, before, 100 * change)
    return {
        "quantisation": {
            "weights": "int8", "k": k, "examples": len(examples), "float32": before, "int8": after, "change": change
        }
    }  # fmt: skip


def served_ndcg(best: Callable[..., Any], examples: Examples, k: int) -> float:
    """NDCG@k over all items.

    Args:
        best: gives the best k items of some histories, as `ServedStudent.best`.
        examples: histories and their next items.
        k: the cut-off.
    """
    history, length = examples.past.dense(max(1, int(examples.past.earlier.max(initial=1))))
    gain = 0.0
    for start in range(0, len(examples), _BATCH):
        rows = slice(start, start + _BATCH)
        items, _ = best(history[rows], length[rows], k, False)
        place = np.argwhere(items == examples.target[rows, None])[:, 1]
        gain += float((1 / np.log2(place + 2.0)).sum())
    return gain / max(1, len(examples))


def report_export(config: Mapping[str, Any], folder: Path) -> None:
    """What was written, and what to do with it, on the terminal."""
    files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    console.print(
        f"{folder}: {config['architecture']} over {config['num_items']:,} items, {len(files)} files, {size:.1f} MB; "
        f"its scores differ from PyTorch's by at most {config['largest_difference']:.1e} on {config['rows_compared']} "
        f"histories\nnext: python -m src.exp.recommend student={folder} histories=FILE out=next.parquet, or "
        f"python -m src.exp.serve student={folder}",
        markup=False,
        soft_wrap=True,
    )


def export_record(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the run's manifest says about an export."""
    told = ("name", "largest_difference", "rows_compared", "quantisation")
    return {"exported": str(folder), **{name: config[name] for name in told}}
