"""Hydra's base configs, generated from the settings: a default stands once, in the dataclass, and nowhere in `conf/`.

Every group of a command (a field that holds settings) gets the option `base`, with which the files in `conf/<group>`
begin, and the command's own keys become the config `_<name>`, with which its file in `conf/` begins. A file holds only
what differs. Settings of several kinds (see `VARIANTS`) get one base a kind, `_<kind>`, in place of `base`.

The settings are described once (see `src.config.descriptions`) and kept in `data/cache/base_configs` until a source
file changes, so that help and the answer to a typo import neither them nor torch.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hydra.core.config_store import ConfigStore

from src.core.paths import REPOSITORY, write_bytes

if TYPE_CHECKING:
    from src.config.descriptions import CommandDescription

S = TypeVar("S")

#: where descriptions are kept; a checkout that cannot be written has none
CACHE = REPOSITORY / "data" / "cache" / "base_configs"
SOURCES = REPOSITORY / "src"


@dataclass(frozen=True)
class LazyClass(Generic[S]):
    """A settings class by its name, ``module:class``, imported when it is needed."""

    path: str

    def load(self) -> type[S]:
        """Import the class."""
        module, _, name = self.path.partition(":")
        found: type[S] = getattr(importlib.import_module(module), name)
        return found


#: the settings of every config in `conf/` that a command starts from
SCHEMAS: Mapping[str, LazyClass[Any]] = {
    "config": LazyClass("src.pipeline.settings:ExperimentSettings"),
    "describe": LazyClass("src.data.settings:DescribeSettings"),
    "evaluate": LazyClass("src.pipeline.settings:EvaluateSettings"),
    "teach": LazyClass("src.pipeline.settings:TeachSettings"),
    "tune": LazyClass("src.tuning.search_settings:TuneSettings"),
    "tune_student": LazyClass("src.tuning.search_settings:SearchSettings"),
    "tune_teacher": LazyClass("src.tuning.search_settings:SearchSettings"),
    "use/export": LazyClass("src.serving.export:ExportStudentSettings"),
    "use/recommend": LazyClass("src.serving.recommend:RecommendSettings"),
    "use/serve": LazyClass("src.serving.serve:ServeSettings"),
}

#: what stands in Hydra's store for the command at hand, by name, and what it was made of
_registered: dict[str, CommandDescription] = {}


def loaded(schema: type[S] | LazyClass[S]) -> type[S]:
    """A settings class, however it was given."""
    return schema.load() if isinstance(schema, LazyClass) else schema


def register(described: CommandDescription) -> None:
    """Make Hydra's configs of what a command's settings hold: its groups, and its own keys that have a default."""
    store = ConfigStore.instance()
    while _registered:  # a group of another command would hide a key of this one that has its name
        store.repo.pop(_registered.popitem()[0], None)
    for name, own in described["own"].items():
        store.store(name=f"_{name}", node=own)
        _registered[f"_{name}.yaml"] = described
    for group, field in described["settings"]["fields"].items():
        if field["kinds"]:
            _registered[group] = described
        for kind, settings in field["kinds"].items():
            defaults = {key: held["default"] for key, held in settings["fields"].items()}
            store.store(group=group, name=kind, node=defaults)


def prepare(config_name: str) -> None:
    """Make the base configs of a config in `conf/` known to Hydra, unless they are."""
    if config_name in SCHEMAS:
        described = description(config_name)
        there = ConfigStore.instance().repo.keys() >= _registered.keys()
        if not (_registered and there and all(made_of is described for made_of in _registered.values())):
            register(described)


@cache
def description(config_name: str) -> CommandDescription:
    """The settings of a config in `conf/`, from the last time that they were described where they are the same."""
    place, key = CACHE / f"{config_name}.json", _key()
    found = _read(place, key)
    if found is None:
        from src.config.descriptions import describe_command  # pydantic, and all that the settings import

        found = describe_command(SCHEMAS[config_name].load())
        body = json.dumps(found)
        with suppress(OSError):
            write_bytes(place, f"{key} {_digest(body)}\n{body}".encode())
    return found


def _read(place: Path, key: str) -> CommandDescription | None:
    """What was kept under this key; None where there is nothing, or something else than was written."""
    try:
        head, _, body = place.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if head != f"{key} {_digest(body)}":
        return None
    found: CommandDescription = json.loads(body)
    return found


def _key() -> str:
    """What a description depends on: every source file (any may define settings), Python and pydantic."""
    from pydantic.version import VERSION

    found = sha256(f"{sys.version}\n{VERSION}\n".encode())
    for file in sorted(SOURCES.rglob("*.py")):
        content = file.read_bytes()
        found.update(f"{file.relative_to(SOURCES)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
