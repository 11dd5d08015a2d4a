"""What a user may say about the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class ColumnSettings:
    """Which column of a table holds what; null: guessed from common names where only one fits, and printed.

    A name may also be the place of a column that has no name, counted from 1.
    """

    user: Annotated[str | None, Field(description="who acted")] = None
    item: Annotated[str | None, Field(description="on which item, in the log and in the item file")] = None
    time: Annotated[str | None, Field(description="when: a number (s, ms, µs, ns) or a date")] = None
    rating: Annotated[str | None, Field(description="how the user liked it; read by min_rating only")] = None
    title: Annotated[str | None, Field(description="the item's title, in the item file or in the log")] = None


@dataclass(frozen=True, config=STRICT)
class DatasetSettings:
    """Which dataset, and how it becomes examples.

    Not every adapter reads every field; `load_dataset` refuses one that is set and would be ignored.
    """

    adapter: Annotated[
        str, Field(min_length=1, description="format of the source, or your own package.module:factory")
    ] = "sample"
    root: Annotated[
        Path, Field(description="folder of the source's files (table: or the log itself); the sample reads none")
    ] = Path("data/raw")
    name: Annotated[
        str,
        Field(
            min_length=1,
            pattern=r"^[\w.-]+$",
            description="file stem (recbole, table), MovieLens release, folder in data/ (dllm2rec), or a label",
        ),
    ] = "sample"
    window: Annotated[int, Field(ge=1, le=1000, description="items of history that a model sees, the latest ones")] = 10
    min_history: Annotated[
        int, Field(ge=0, description="earlier items that a target needs; 0 keeps targets without history")
    ] = 3
    min_rating: Annotated[
        float | None, Field(description="interactions rated lower are dropped; null: all ratings count")
    ] = None
    split: Annotated[
        Literal["temporal", "leave_one_out"],
        Field(description="temporal: global time order of targets; leave_one_out: each user's last two targets"),
    ] = "temporal"
    train_share: Annotated[float, Field(gt=0, lt=1, description="first share of the targets (temporal)")] = 0.8
    validation_share: Annotated[float, Field(gt=0, lt=1, description="next share of the targets (temporal)")] = 0.1
    title_handling: Annotated[
        Literal["corrected", "as_released"],
        Field(description="as_released repeats the published title rule with its faults (movielens, llara)"),
    ] = "corrected"
    title_year: Annotated[bool, Field(description="keep the release year in titles: 'Heat (1995)'")] = False
    titles_file: Annotated[
        str | None,
        Field(description="item titles for dllm2rec, under root: JSON, CSV id,title, id::name, or name TAB id"),
    ] = None
    interactions_file: Annotated[
        str | None, Field(description="the log, a file or a folder of files under root; null: found by name (table)")
    ] = None
    items_file: Annotated[
        str | None, Field(description="the items' file or folder under root; null: found by name (table)")
    ] = None
    columns: Annotated[ColumnSettings, Field(description="which column holds what")] = ColumnSettings()
    header: Annotated[
        tuple[str, ...], Field(description="column names of a log that has none, in their order; empty: it has them")
    ] = ()
    separator: Annotated[
        str | None, Field(min_length=1, max_length=2, description="between two fields; null: found in the first line")
    ] = None
    encoding: Annotated[
        str | None, Field(description="of text files; null: UTF-8, and ISO-8859-1 where MovieLens' files are not UTF-8")
    ] = None
    order: Annotated[
        Literal["time", "file"],
        Field(description="what came first: the earlier time, or the earlier row (a log without a clock)"),
    ] = "time"
    time_format: Annotated[
        str | None, Field(description="of dates, as strptime writes it: '%d/%m/%Y'; null: found from the values")
    ] = None
    duplicates: Annotated[
        Literal["keep", "drop"], Field(description="rows that repeat user, item, time and rating of an earlier one")
    ] = "keep"
    untitled: Annotated[
        Literal["keep", "id", "drop", "refuse"],
        Field(description="items without a title: keep as they are, use the raw id as title, drop them, or refuse"),
    ] = "keep"
    item_text: Annotated[
        str,
        Field(
            min_length=1,
            description="an item as a language model reads it: a template over the item file's fields, "
            "'{title} ({year}), {genres}'; missing fields are left out with their punctuation",
        ),
    ] = "{title}"
    min_user_interactions: Annotated[
        int, Field(ge=1, description="users with fewer are dropped, in turn with items until neither changes")
    ] = 1
    min_item_interactions: Annotated[
        int, Field(ge=1, description="items with fewer are dropped, in turn with users until neither changes")
    ] = 1
    min_users: Annotated[int, Field(ge=1, description="fewer users are refused")] = 10
    min_items: Annotated[int, Field(ge=2, description="fewer items are refused")] = 20
    download: Annotated[bool, Field(description="fetch missing MovieLens files from grouplens.org")] = False
    sample_users: Annotated[int, Field(ge=20, le=20_000, description="users of the synthetic world")] = 640
    sample_items: Annotated[int, Field(ge=20, le=2_000, description="items of the synthetic world")] = 420
    sample_interactions: Annotated[
        int, Field(ge=200, le=2_000_000, description="interactions of the synthetic world")
    ] = 22_000
    sample_seed: Annotated[int, Field(ge=0, description="seed of the synthetic world")] = 20240

    @model_validator(mode="after")
    def _fields_agree(self) -> DatasetSettings:
        if self.train_share + self.validation_share >= 1:
            raise ValueError(
                f"train_share + validation_share = {self.train_share + self.validation_share:g} must be below 1: "
                "the rest is the test split"
            )
        if self.order == "file" and self.split == "temporal":
            raise ValueError("order = file knows no time to split at: use split = leave_one_out")
        if self.title_year and self.title_handling == "as_released":
            raise ValueError("title_year = True does not go with title_handling = as_released, which drops the year")
        return self


@dataclass(frozen=True, config=STRICT)
class DescribeSettings:
    """What is described."""

    dataset: Annotated[DatasetSettings, Field(description="the data")] = DatasetSettings()
