"""One module per source format. An adapter turns files into `Interactions`, or `PreSplit` where the source is split.

A new format is a module with a ``load`` function and one entry in `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from src.data.adapters import dllm2rec, llara, movielens, recbole, sample
from src.data.interactions import Interactions
from src.data.pre_split import PreSplit
from src.data.settings import AdapterName, DatasetSettings


@dataclass(frozen=True)
class Adapter:
    """How to read one format.

    ``reads`` names the settings that it reads beyond the shared ones; ``pre_split`` says whether the source comes with
    its splits, so that the settings of splitting do not apply.
    """

    load: Callable[[DatasetSettings], Interactions | PreSplit]
    reads: frozenset[str]
    pre_split: bool = False


ADAPTERS: Mapping[AdapterName, Adapter] = {
    "sample": Adapter(sample.load, sample.READS),
    "recbole": Adapter(recbole.load, recbole.READS),
    "movielens": Adapter(movielens.load, movielens.READS),
    "dllm2rec": Adapter(dllm2rec.load, dllm2rec.READS, pre_split=True),
    "llara": Adapter(llara.load, llara.READS, pre_split=True),
}
