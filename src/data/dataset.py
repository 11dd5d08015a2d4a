"""The one way into this room: settings in, splits over one catalogue out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from src.core.errors import ConfigError, DataError, Problem
from src.core.logging import get_logger
from src.data import row_rules
from src.data.adapters import ADAPTERS, find_adapter
from src.data.candidates import require_negatives
from src.data.examples import Examples, SealedExamples, SequenceData, Statistics
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.pre_split import SPLITS, PreSplit
from src.data.row_rules import apply_rules, check_untitled
from src.data.sequences import build_examples
from src.data.settings import DatasetSettings
from src.data.splits import Split, leave_one_out_split, temporal_split
from src.data.tables import files_of

_log = get_logger(__name__)

_ALWAYS_READ = frozenset({"adapter", "name", "root", "window", "min_history", "min_items", "untitled"})
_LOG_READS = row_rules.READS | {"split", "min_users"}
_TEMPORAL_READS = frozenset({"train_share", "validation_share"})


def load_dataset(settings: DatasetSettings) -> SequenceData:
    """Read a source and split it.

    Raises ``ConfigError`` for a setting that this source would ignore, ``DataError`` for files that are missing or
    malformed, ids outside the catalogue, and a dataset that is too small for its rules.
    """
    _refuse_unread(settings)
    return split_source(find_adapter(settings.adapter).load(settings), settings)


def source_files(settings: DatasetSettings) -> list[Path] | None:
    """The files that decide what `load_dataset` returns, in the order in which they are read; None where only reading
    tells. Raises as `load_dataset` does for settings that would be ignored and for files that are not there.
    """
    _refuse_unread(settings)
    named = find_adapter(settings.adapter).files
    if named is None or settings.adapter not in ADAPTERS:  # what code of the user's own reads may change with that code
        return None
    return [file for path in named(settings) for file in files_of(path)]


def split_source(source: Interactions | PreSplit, settings: DatasetSettings) -> SequenceData:
    """What an adapter (or a table in memory, see `adapters.table`) gave, under the rules and split."""
    data = _from_log(source, settings) if isinstance(source, Interactions) else _from_pre_split(source, settings)
    require_negatives(data.train, data.num_items)
    if data.id_map.untitled:
        _log.warning("%d of %d items of %s have no title", data.id_map.untitled, data.num_items, data.name)
    return data


def format_statistics(data: SequenceData) -> str:
    """Users, items, interactions, density and examples per split, a line each."""
    numbers = data.statistics
    rows = [
        ("dataset", data.name),
        ("users", "not named by the source" if numbers.users is None else f"{numbers.users:,}"),
        ("items", f"{numbers.items:,}"),
        ("interactions", f"{numbers.interactions:,}"),
        ("density", "unknown" if numbers.density is None else f"{numbers.density:.3%}"),
        ("train examples", f"{numbers.train:,}"),
        ("validation examples", f"{numbers.validation:,}"),
        ("test examples", f"{numbers.test:,} (sealed)"),
    ]
    return "\n".join(f"{label:<20}{value}" for label, value in rows)


def _refuse_unread(settings: DatasetSettings) -> None:
    adapter = find_adapter(settings.adapter)
    read = _ALWAYS_READ | adapter.reads
    reason = f"is not read by dataset.adapter = {settings.adapter}"
    if not adapter.is_pre_split(settings):
        read |= _LOG_READS
        if settings.split == "temporal":
            read |= _TEMPORAL_READS
        else:
            reason += f" with dataset.split = {settings.split}"
    problems = [
        Problem(f"dataset.{field.name}", getattr(settings, field.name), reason, "remove this option")
        for field in fields(settings)
        if field.name not in read and getattr(settings, field.name) != field.default
    ]
    if problems:
        raise ConfigError(problems)


def _from_log(source: Interactions, settings: DatasetSettings) -> SequenceData:
    log = apply_rules(source, settings)
    examples = build_examples(log, settings.window, settings.min_history)
    split: Split
    if settings.split == "temporal":
        split = temporal_split(examples, settings.train_share, settings.validation_share)
    else:
        split = leave_one_out_split(examples)
    statistics = Statistics(
        log.num_users, log.id_map.num_items, len(log.users), log.density, *(len(part) for part in split)
    )
    return _assemble(log.name, log.id_map, split, statistics, source.fingerprint, settings)


def _from_pre_split(source: PreSplit, settings: DatasetSettings) -> SequenceData:
    check_untitled(source.id_map, settings)
    train, validation, test = (source.examples(split, settings.window, settings.min_history) for split in SPLITS)
    rows = sum(len(table) for table in source.tables.values())
    statistics = Statistics(None, source.id_map.num_items, rows, None, len(train), len(validation), len(test))
    return _assemble(source.name, source.id_map, (train, validation, test), statistics, source.fingerprint, settings)


def _assemble(
    name: str, id_map: IdMap, split: Split, statistics: Statistics, fingerprint: str, settings: DatasetSettings
) -> SequenceData:
    if problems := _too_small(statistics, split, settings):
        raise DataError(problems)
    train, validation, test = split
    return SequenceData(name, id_map, train, validation, SealedExamples(test), statistics, fingerprint)


def _too_small(statistics: Statistics, split: tuple[Examples, ...], settings: DatasetSettings) -> list[Problem]:
    problems = []
    bigger = "use a larger dataset, or lower this limit"
    if statistics.users is not None and statistics.users < settings.min_users:
        rule = f"at least dataset.min_users = {settings.min_users} are needed"
        problems.append(Problem("users", statistics.users, rule, bigger))
    if statistics.items < settings.min_items:
        rule = f"at least dataset.min_items = {settings.min_items} are needed"
        problems.append(Problem("items", statistics.items, rule, bigger))
    step = f"lower dataset.min_history ({settings.min_history}) or dataset.min_rating ({settings.min_rating})"
    problems += [
        Problem(f"{label} examples", 0, "none are left after filtering and splitting", step)
        for label, part in zip(SPLITS, split, strict=True)
        if not len(part)
    ]
    return problems
