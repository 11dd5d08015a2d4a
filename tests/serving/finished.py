"""Finished results made by hand, in milliseconds: a student with drawn weights in a folder like a run's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from src.core.paths import write_json, write_text
from src.core.result_files import BEST_STUDENT
from src.data.id_map import IdMap
from src.data.settings import DatasetSettings
from src.student.artefact import save_student
from src.student.base import ClosedForm, Recommender, SequenceStudent
from src.student.models import build_closed_form, build_recommender, student_settings

NUM_ITEMS, WINDOW = 23, 6
#: a small world that can be read again
WORLD = DatasetSettings(sample_users=40, sample_items=24, sample_interactions=600)


def id_map(num_items: int = NUM_ITEMS) -> IdMap:
    """Raw ids ``100``…, titles ``Title 0``…"""
    return IdMap(tuple(str(100 + item) for item in range(num_items)), tuple(f"Title {n}" for n in range(num_items)))


def drawn(model: Recommender, seed: int = 0) -> Recommender:
    """The model with every number drawn."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.randn_like(tensor) / 2)
    return model.eval()


def student(architecture: str, prior: str = "none", num_items: int = NUM_ITEMS, **fields: Any) -> Recommender:
    """A student with drawn numbers, and a prior of another architecture."""
    model = drawn(build_recommender(student_settings(architecture, **fields), num_items, WINDOW))
    if prior != "none":
        assert isinstance(model, SequenceStudent)
        closed = build_closed_form(student_settings(prior), num_items, WINDOW)
        drawn(closed, 1)
        assert isinstance(closed, ClosedForm)
        model.add_prior(closed, 0.7)
        with torch.no_grad():
            assert model.prior_gain is not None
            model.prior_gain.fill_(1.3)
    return model


def finished(
    folder: Path,
    model: Recommender,
    known: IdMap | None = None,
    fingerprints: dict[str, str] | None = None,
    dataset: DatasetSettings | None = None,
    **fields: Any,
) -> Path:
    """A result folder that holds a student."""
    known = known or id_map(model.num_items)
    settings = getattr(model, "settings", None) or student_settings(type(model).__name__.lower(), **fields)
    folder.mkdir(parents=True)
    save_student(folder / BEST_STUDENT, model, settings, known, fingerprints or {"id_map": known.fingerprint}, {})
    write_text(
        folder / "comparison.csv",
        "model,split,examples,trials,recall_20,ndcg_20\nbaseline,test,60,1,0.25,0.1\ndistilled,test,60,3,0.5,0.125\n",
    )
    if dataset is not None:
        write_text(
            folder / "settings.yaml", yaml.safe_dump({"dataset": {**asdict(dataset), "root": str(dataset.root)}})
        )
    manifest = {"kind": "tune_distill", "finished": "2026-01-01T00:00:00", "seed": 7, "git": {"revision": "abc"}}
    write_json(folder / "manifest.json", manifest)
    return folder


def by_item(items: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores in the order of the items, ``[B, V]``."""
    return np.take_along_axis(scores, np.argsort(items, axis=1), axis=1)
