"""Hydra: what `conf/` and a command line's overrides compose, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from src.config.base_configs import prepare
from src.core.paths import REPOSITORY

CONF = REPOSITORY / "conf"
RUN_DIR = "hydra.run.dir"

#: the one mapping whose keys are the user's own
OPEN = "student.options"


@cache
def groups(config_name: str) -> Mapping[str, list[str]]:
    """The groups of a config in `conf/` and their options."""
    content = _content(config_name, ())
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_place(config_name)[0].iterdir())
        if folder.is_dir() and folder.name in content
    }


def config_place(config_name: str) -> tuple[Path, str]:
    """The folder that a config and its groups lie in, and its name there: `use/serve` knows no group of `conf/`."""
    path = CONF / config_name
    return path.parent, path.name


def compose_plain(config_name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The composed config as nested plain data, and the run folder that it names."""
    config = _composed(config_name, [opened(text) for text in overrides])
    folder = Path(str(config.hydra.run.dir))
    own = cast(DictConfig, OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    return cast(dict[str, Any], OmegaConf.to_container(own, resolve=True)), folder


def compose_choices(config_name: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """The option of every group of a config, with these ones chosen."""
    config = _composed(config_name, [f"{group}={option}" for group, option in chosen.items()])
    known = groups(config_name)
    return {str(group): str(option) for group, option in config.hydra.runtime.choices.items() if group in known}


def _composed(config_name: str, overrides: Sequence[str]) -> DictConfig:
    prepare(config_name)
    GlobalHydra.instance().clear()
    place, name = config_place(config_name)
    with initialize_config_dir(str(place), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=True)


@cache
def known_keys(config_name: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Every key that can be changed once these group options are chosen."""
    return (*dotted_keys(_content(config_name, chosen)), RUN_DIR)


@cache
def _content(config_name: str, chosen: tuple[str, ...]) -> Mapping[str, Any]:
    return compose_plain(config_name, chosen)[0]


def dotted_keys(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of nested plain data, those of mappings among them."""
    keys = []
    for key, value in content.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += dotted_keys(value, f"{prefix}{key}.")
    return keys


def is_open(key: str) -> bool:
    """Whether a key lies in the mapping whose keys are the user's own."""
    return key == OPEN or key.startswith(f"{OPEN}.")


def opened(override: str) -> str:
    """An override as Hydra takes it: keys can be changed only, but for those of `OPEN`, which are added."""
    return f"++{override}" if is_open(override.split("=", 1)[0]) else override
