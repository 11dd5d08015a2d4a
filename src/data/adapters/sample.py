"""A small synthetic world, made by code: enough to try everything in minutes, and evidence for nothing.

Items belong to a theme, a mood and mostly to a series; their titles say all three in words. People have favourite
themes and a favourite mood, stay with a theme for a while, like what is popular, and often go on with a series ("…,
Part 2"). Items come out over time, so that the last weeks hold items with little history, about which only the title
says much.

Everything is whole-number arithmetic on the raw output of PCG64, whose stream numpy guarantees: the same seed makes the
same world on every machine and with every numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.data.adapters.registry import Adapter, register
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings

READS = frozenset({"sample_users", "sample_items", "sample_interactions", "sample_seed"})

Ints = NDArray[np.int64]

#: Two words of its theme stand in every title.
THEMES = {
    "space": "Orbit Nebula Rocket Comet Galaxy Lunar Saturn Meteor Eclipse Astronaut",
    "western": "Saddle Canyon Sheriff Mustang Prairie Saloon Frontier Ranch Outlaw Cactus",
    "ocean": "Harbor Reef Sailor Lighthouse Tide Coral Anchor Voyage Dolphin Lagoon",
    "magic": "Wizard Dragon Spell Castle Sorcerer Enchanted Potion Unicorn Amulet Prophecy",
    "crime": "Detective Heist Alibi Murder Suspect Gangster Ransom Witness Verdict Fugitive",
    "romance": "Wedding Sweetheart Valentine Kiss Bride Letters Honeymoon Dance Rose Promise",
    "war": "Battalion Trench Soldier General Bunker Regiment Siege Armistice Cavalry Fortress",
    "music": "Violin Jazz Concert Melody Drummer Opera Guitar Chorus Ballad Orchestra",
    "sport": "Stadium Boxer Marathon Champion Goalkeeper League Racer Wrestler Trophy Sprint",
    "horror": "Ghost Vampire Graveyard Haunted Zombie Werewolf Phantom Coffin Demon Asylum",
}
#: One word of its mood begins every title.
MOODS = {
    "merry": "Merry Funny Crazy Silly Happy Jolly",
    "dark": "Dark Silent Grim Bitter Lost Broken",
    "epic": "Mighty Golden Eternal Grand Legendary Heroic",
    "tender": "Gentle Little Quiet Tender Sweet Warm",
}

_PARTS = (1, 1, 2, 3, 4)  # how many parts a series may have, equally likely
_DAYS = 360
_DAY_SECONDS = 86_400
_EPOCH = 1_500_000_000
_MEMBER_DAYS = 60  # how long a person is active
_LATE_SHARE = 3  # one series in three comes out during the recorded time, the others before it

# Whole-number weights of what attracts a person to an item.
_THEME = {"first": 24, "second": 10, "other": 1}
_MOOD_MATCH, _SESSION = 4, 5
_GO_ON = 45  # chance in 100 to take the next part of the series, where there is one
_POPULARITY = 10_000


class _Dice:
    """Whole random numbers from PCG64's raw 64-bit words."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, bound: int | Ints, count: int) -> Ints:
        """``[count]`` numbers in 0..bound-1; the bias is below bound / 2**62."""
        raw = np.asarray(self._source.random_raw(count), dtype=np.uint64) >> np.uint64(2)
        return np.mod(raw.astype(np.int64), bound)

    def order(self, count: int) -> Ints:
        """``[count]``: 0..count-1 shuffled."""
        return np.argsort(np.asarray(self._source.random_raw(count)), kind="stable")


@dataclass(frozen=True, eq=False)
class _Items:
    titles: tuple[str, ...]
    theme: Ints
    mood: Ints
    following: Ints  # the next part of the series, or -1
    release: Ints  # day
    popularity: Ints


def load(settings: DatasetSettings) -> Interactions:
    """Generate the world: exactly ``sample_interactions`` interactions, in time order."""
    dice = _Dice(settings.sample_seed)
    items = _make_items(settings.sample_items, dice)
    lengths = _activity(settings.sample_users, settings.sample_interactions, settings.sample_items, dice)
    users, chosen, seconds = _live(items, lengths, dice)
    order = np.lexsort((users, seconds))
    raw_ids = tuple(f"item-{number:04d}" for number in range(len(items.titles)))
    id_map = IdMap(raw_ids, items.titles)
    timestamps = (_EPOCH + seconds[order]).astype(np.float64)
    return Interactions(settings.name, users[order], chosen[order], timestamps, None, id_map)


def _make_items(count: int, dice: _Dice) -> _Items:
    """Series after series until there are enough items; then all in random order, so that an id tells nothing."""
    words = [text.split() for text in THEMES.values()]
    moods = [text.split() for text in MOODS.values()]
    pairs = [(theme, one, two) for theme, own in enumerate(words) for one in own for two in own if one != two]
    titles: list[str] = []
    theme_of, mood_of, following, release, popularity = [], [], [], list[int](), list[int]()
    for rank, place in enumerate(dice.order(len(pairs))):
        theme, one, two = pairs[place]
        mood, adjective, parts, late, day = (int(dice.below(bound, 1)[0]) for bound in (4, 6, 5, _LATE_SHARE, _DAYS))
        name = f"{moods[mood][adjective]} {one} {two}"
        size = min(_PARTS[parts], count - len(titles))
        first_day = day - day // 10 if late == 0 else 0
        for part in range(size):
            titles.append(name if part == 0 else f"{name}, Part {part + 1}")
            following.append(len(titles) if part + 1 < size else -1)
            release.append(first_day)
            popularity.append(_POPULARITY // (rank + 8 + 6 * part))
        theme_of += [theme] * size
        mood_of += [mood] * size
        if len(titles) == count:
            break
    order = dice.order(count)
    place = np.append(np.argsort(order), -1)  # the last entry answers for "no next part", -1
    theme_column, mood_column, following_column, release_column, popularity_column = (
        np.array(column, dtype=np.int64)[order] for column in (theme_of, mood_of, following, release, popularity)
    )
    shuffled = tuple(titles[index] for index in order)
    return _Items(shuffled, theme_column, mood_column, place[following_column], release_column, popularity_column)


def _activity(users: int, interactions: int, items: int, dice: _Dice) -> Ints:
    """``[users]`` numbers of interactions with a long tail that add up to ``interactions``.

    Nobody meets more than half the catalogue; where that many do not fit, everybody gets the most.
    """
    most = items // 2
    weight = 2 + 40 // (1 + dice.below(40, users)) + dice.below(6, users)
    lengths = np.minimum(np.maximum(interactions * weight // int(weight.sum()), 5), most)
    order = dice.order(users)
    while (missing := min(interactions, most * users) - int(lengths.sum())) != 0:
        able = order[(lengths[order] < most) if missing > 0 else (lengths[order] > 1)][: abs(missing)]
        lengths[able] += 1 if missing > 0 else -1
    return lengths


def _live(items: _Items, lengths: Ints, dice: _Dice) -> tuple[Ints, Ints, Ints]:
    """Everybody's choices, one step for all people at once: users, items, seconds since the start."""
    people, count = len(lengths), len(items.titles)
    taste = _taste(items, people, dice)
    start = dice.below(_DAYS - _MEMBER_DAYS, people) * _DAY_SECONDS + dice.below(_DAY_SECONDS, people)
    gap = _MEMBER_DAYS * _DAY_SECONDS // lengths
    seen = np.zeros((people, count + 1), dtype=bool)  # the last column stands for "no item"
    seen[:, -1] = True
    last = np.full(people, -1, dtype=np.int64)
    steps = []
    for step in range(int(lengths.max())):
        active = np.flatnonzero(lengths > step)
        seconds = start[active] + step * gap[active] + dice.below(gap[active], len(active))
        out = items.release[None, :] * _DAY_SECONDS <= seconds[:, None]
        weights = taste[active] * (out & ~seen[active, :-1])
        same = (last[active] >= 0)[:, None] & (items.theme[None, :] == items.theme[last[active]][:, None])
        weights *= np.where(same, _SESSION, 1)
        chosen = _pick(weights, dice)
        next_part = np.where(last[active] >= 0, items.following[last[active]], -1)
        goes_on = (dice.below(100, len(active)) < _GO_ON) & ~seen[active, next_part]
        goes_on &= out[np.arange(len(active)), next_part]
        chosen = np.where(goes_on, next_part, chosen)
        seen[active, chosen] = True
        last[active] = chosen
        steps.append((active, chosen, seconds))
    users, chosen_items, times = (np.concatenate(column) for column in zip(*steps, strict=True))
    return users, chosen_items, times


def _taste(items: _Items, people: int, dice: _Dice) -> Ints:
    """``[people, V]`` weights: favourite themes × favourite mood × popularity."""
    first, second = dice.below(len(THEMES), people), dice.below(len(THEMES), people)
    favourite_mood = dice.below(len(MOODS), people)
    theme = np.full((people, len(THEMES)), _THEME["other"], dtype=np.int64)
    theme[np.arange(people), second] = _THEME["second"]
    theme[np.arange(people), first] = _THEME["first"]
    mood = np.where(items.mood[None, :] == favourite_mood[:, None], _MOOD_MATCH, 1)
    weights: Ints = theme[:, items.theme] * mood * items.popularity[None, :]
    return weights


def _pick(weights: Ints, dice: _Dice) -> Ints:
    """One column for each row, with chances in proportion to the row's weights (not all zero)."""
    sums = np.cumsum(weights, axis=1)
    ticket = dice.below(sums[:, -1], len(sums))
    return (sums <= ticket[:, None]).sum(axis=1).astype(np.int64)


register("sample", Adapter(load, READS))
