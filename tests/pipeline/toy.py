"""A whole experiment in a second: a small synthetic world, a narrow student, two epochs, given teacher outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from src.config.overrides import format_value
from src.config.reading import read_settings
from src.data.examples import SequenceData
from src.pipeline.cache import StageCache
from src.pipeline.run_folder import RunFolder
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages

WORLD = ["dataset.sample_users=40", "dataset.sample_items=24", "dataset.sample_interactions=600"]
BASELINES = ["baselines.models=[popularity]", "baselines.trials=1"]
STUDENT = ["student.width=8", "student.loop.epochs=2", "student.loop.batch_size=64", "runtime.device=cpu"]


def toy_arguments(folder: Path, *more: str) -> list[str]:
    """Overrides of a small experiment whose cache lies in ``folder``."""
    return [*WORLD, *STUDENT, *BASELINES, f"runtime.cache={format_value(str(folder / 'cache'))}", *more]


def toy_settings(folder: Path, *more: str) -> ExperimentSettings:
    """The same as settings."""
    return read_settings("config", toy_arguments(folder, *more), ExperimentSettings)[0]


def toy_stages(folder: Path, *more: str) -> Stages:
    """Stages over a cache in ``folder``."""
    settings = toy_settings(folder, *more)
    return Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))


def new_run(folder: Path) -> RunFolder:
    """An empty run folder."""
    folder.mkdir(parents=True)
    return RunFolder(folder)


def write_given_outputs(folder: Path, data: SequenceData, top_n: int = 10, width: int = 6) -> Path:
    """DLLM2Rec's three files for every training row: the target first, then other items."""
    random, items = np.random.default_rng(0), np.arange(data.num_items)
    rows = [[t, *random.permutation(np.delete(items, t))[: top_n - 1]] for t in data.train.target]
    folder.mkdir(parents=True)
    np.savetxt(folder / "myrank_train.txt", np.array(rows), fmt="%d")
    np.savetxt(folder / "confidence_train.txt", np.sort(random.random((len(rows), top_n)) * 5, axis=1))
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(data.num_items, width, generator=generator), folder / "all_embeddings.pt")
    return folder
