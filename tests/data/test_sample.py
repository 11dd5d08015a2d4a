"""The synthetic world: the same everywhere, as large as asked, and its titles tell who likes what."""

from __future__ import annotations

import re

import numpy as np
import pytest

from src.data.adapters import sample
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings


def test_the_default_world_is_pinned() -> None:
    # another value here means another world on another machine or numpy, or a change that old artefacts do not survive
    log = sample.load(DatasetSettings())
    assert log.fingerprint == "74c6b25a8c2e5c19"


def test_its_size() -> None:
    data = load_dataset(DatasetSettings())
    assert data.statistics.users == 640
    assert data.num_items == 420
    assert data.statistics.interactions == 22_000


@pytest.mark.parametrize(("users", "items", "interactions"), [(20, 20, 200), (50, 40, 900), (30, 30, 300)])
def test_small_worlds_have_the_size_that_was_asked_for(users: int, items: int, interactions: int) -> None:
    log = sample.load(DatasetSettings(sample_users=users, sample_items=items, sample_interactions=interactions))
    assert len(log.users) == interactions
    assert log.num_users == users
    assert len(log.id_map.titles) == items
    assert len({(user, item) for user, item in zip(log.users, log.items, strict=True)}) == interactions
    assert (np.diff(log.timestamps) >= 0).all()


def test_more_interactions_than_fit_are_cut_to_half_the_catalogue_each() -> None:
    log = sample.load(DatasetSettings(sample_users=20, sample_items=20, sample_interactions=5000))
    assert len(log.users) == 20 * 10


def test_another_seed_is_another_world() -> None:
    assert sample.load(DatasetSettings(sample_seed=1)).fingerprint != sample.load(DatasetSettings()).fingerprint


def test_titles_are_unique_and_say_the_theme() -> None:
    titles = sample.load(DatasetSettings()).id_map.titles
    assert len(set(titles)) == len(titles)
    themes = [set(words.split()) for words in sample.THEMES.values()]
    for title in titles:
        words = set(re.findall(r"[A-Z]\w+", title)) - {"Part"}
        assert sum(len(words & theme) == 2 for theme in themes) == 1


def test_words_of_a_title_and_parts_of_a_series_predict_what_comes_next() -> None:
    data = load_dataset(DatasetSettings())
    titles = data.id_map.titles
    theme_of = [
        next(n for n, words in enumerate(sample.THEMES.values()) if title.split()[1] in words) for title in titles
    ]
    last = data.train.history[np.arange(len(data.train)), data.train.length - 1]
    theme = np.array(theme_of)
    same_theme = (theme[last] == theme[data.train.target]).mean()
    # ten themes: by chance about one in ten
    assert same_theme > 0.5
    following = {title: place for place, title in enumerate(titles)}
    continued = 0
    for one, two in zip(last, data.train.target, strict=True):
        name, _, part = titles[one].partition(", Part ")
        continued += following.get(f"{name}, Part {int(part or 1) + 1}") == two
    assert continued / len(data.train) > 0.1


def test_popularity_is_skewed_and_late_items_are_rare() -> None:
    data = load_dataset(DatasetSettings())
    counts = np.sort(data.item_counts)[::-1]
    assert counts[:42].sum() > 0.2 * counts.sum()
    assert (counts < 5).sum() >= 10
    assert (data.item_counts[data.validation.target] < 20).mean() > 0.05
