"""What a user may say about the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT

AdapterName = Literal["sample", "recbole", "movielens", "dllm2rec", "llara"]


@dataclass(frozen=True, config=STRICT)
class DatasetSettings:
    """Which dataset, and how it becomes examples.

    Not every adapter reads every field; `load_dataset` refuses one that is set and would be ignored.
    """

    adapter: Annotated[AdapterName, Field(description="format of the source")] = "sample"
    root: Annotated[Path, Field(description="folder of the source's files; the sample reads none")] = Path("data/raw")
    name: Annotated[
        str,
        Field(
            min_length=1,
            pattern=r"^[\w.-]+$",
            description="file stem (recbole), ml-100k or ml-1m (movielens), folder in data/ (dllm2rec), or a label",
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
        str | None, Field(description="item titles for dllm2rec: JSON list or object, or CSV id,title; under root")
    ] = None
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
        if self.title_year and self.title_handling == "as_released":
            raise ValueError("title_year = True does not go with title_handling = as_released, which drops the year")
        return self
