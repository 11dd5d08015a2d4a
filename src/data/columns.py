"""Which column of a table is the user, the item, the time, the rating, the title."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from src.core.errors import ConfigError, Problem
from src.data.settings import ColumnSettings

#: Known names of each role. Names before the bar win over all others; of those behind it only one may be there.
_KNOWN: Mapping[str, tuple[str, str]] = {
    "user": (
        "user_id",
        "user uid reviewer_id customer customer_id account_id member_id visitor_id profile_id buyer_id client_id "
        "person_id reader_id listener_id session_id user_name",
    ),
    "item": (
        "item_id parent_asin",
        "item iid movie_id product_id product sku asin business_id book_id artist_id art_id track_id tra_id song_id "
        "game_id app_id article_id article isbn venue_id poi_id news_id video_id anime_id recipe_id",
    ),
    "time": (
        "timestamp unix_review_time",
        "time ts datetime date unix_timestamp unix_time event_time review_time date_added t utc_time",
    ),
    "rating": ("rating", "ratings stars star_rating score overall review_rating review_score rate"),
    "title": (
        "title movie_title item_title name item_name product_title book_title track_name",
        "product_name artist_name song_name app_name business_name game_name tra_name",
    ),
}
#: Ends of names that tell a time where no known name is there.
_TIME_ENDS = ("at", "time", "timestamp", "date", "ts")

_IN_FILE_ORDER = (
    "or, where the rows stand in the order in which things happened: dataset.order=file dataset.split=leave_one_out; "
)


def plain_name(name: str) -> str:
    """A column's name in small letters, without RecBole's type, blanks, hyphens and underscores."""
    return re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower())


def _hits(role: str, names: Sequence[str]) -> list[str]:
    first, others = (set(map(plain_name, text.split())) for text in _KNOWN[role])
    order = [plain_name(text) for text in _KNOWN[role][0].split()]
    sure = sorted((name for name in names if plain_name(name) in first), key=lambda name: order.index(plain_name(name)))
    if sure:
        return sure[:1]
    found = [name for name in names if plain_name(name) in others]
    if found or role != "time":
        return found
    return [name for name in names if re.search(rf"[_ -]({'|'.join(_TIME_ENDS)})$", name.lower())]


def guess(role: str, names: Sequence[str]) -> str | None:
    """The column of a role where exactly one fits; None else."""
    found = _hits(role, names)
    return found[0] if len(found) == 1 else None


def resolve(
    settings: ColumnSettings, names: Sequence[str], label: str, required: Sequence[str], wanted: Sequence[str]
) -> dict[str, str]:
    """The column of each wanted role: the one that the settings name, or the only one that fits.

    Args:
        settings: what the user says; a name, or a column's place counted from 1.
        names: the columns that are there.
        label: how messages call the table.
        required: roles that must be found.
        wanted: roles that may be found.

    Raises:
        ConfigError: a named column is not there; a required one is not found, or several fit.
    """
    found, problems = {}, []
    chosen = {
        "user": settings.user,
        "item": settings.item,
        "time": settings.time,
        "rating": settings.rating,
        "title": settings.title,
    }
    for role in (*required, *wanted):
        if (named := chosen[role]) is not None:
            column = _named(named, names)
            if column is None:
                rule = f"is no column of {label}"
                problems.append(Problem(f"dataset.columns.{role}", named, rule, _there(names)))
            else:
                found[role] = column
            continue
        hits = [name for name in _hits(role, names) if name not in found.values()]
        if len(hits) == 1:
            found[role] = hits[0]
        elif role in required:
            rule = (
                f"{label} has no column that is known as {role}" if not hits else f"several columns may be the {role}"
            )
            value = hits or None
            step = f"name it; {_IN_FILE_ORDER if role == 'time' else ''}{_there(names)}"
            problems.append(Problem(f"dataset.columns.{role}", value, rule, step))
    if "user" in found and found["user"] == found.get("item"):
        problems.append(Problem("dataset.columns.item", found["item"], "is the column of users as well", _there(names)))
    if problems:
        raise ConfigError(problems)
    return found


def _named(wanted: str, names: Sequence[str]) -> str | None:
    exact = [name for name in names if wanted in (name, name.partition(":")[0])]
    if exact:
        return exact[0]
    same = [name for name in names if plain_name(name) == plain_name(wanted)]
    if len(same) == 1:
        return same[0]
    place = int(wanted) if wanted.isdecimal() else 0
    return names[place - 1] if 0 < place <= len(names) else None


def _there(names: Sequence[str]) -> str:
    return f"the columns are {', '.join(names)}"
