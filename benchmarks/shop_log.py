"""The log of a shop that does not exist: ``orders.csv`` (customer, sku, purchased_at, stars) and ``products.csv``.

    python -m benchmarks.shop_log --folder shop                     # 500,000 rows, 20,000 customers, 2,000 products
    python -m benchmarks.shop_log --folder shop --rows 20000 --customers 1000

For trying the commands as somebody would whose data no program has seen before: columns under names of their own, dates
with a zone, stars that some leave out, titles with commas and quotes. Who bought something tends to buy its neighbour
of the same shelf next; beside that, some products and some customers are met far more often than others. That is easy
to learn: what a model scores here is evidence for nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_BEGIN, _DAYS = np.datetime64("2024-01-01T00:00:00"), 700
_SHELF = 25
_COLOURS = ("Red", "Green", "Blue", "Black", "White", "Grey", "Yellow", "Brown", "Pink", "Plain")
_SHELVES = (
    "Kettle", "Teapot", "Lamp", "Chair", "Notebook", "Fountain Pen", "Raincoat", "Umbrella", "Backpack", "Tent",
    "Puzzle", "Kite", "Guitar", "Violin", "Camera", "Tripod", "Hammer", "Drill", "Seed Mix", "Watering Can",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large the log is."""

    rows: int = 500_000
    customers: int = 20_000
    products: int = 2_000


def purchases(size: Size, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Customer and product of each purchase; each customer's stand one after the other, the earliest first."""
    weights = 0.2 + random.pareto(2.5, size.customers)
    drawn_customers = random.choice(size.customers, size.rows - size.customers, p=weights / weights.sum())
    customers = np.sort(np.r_[np.arange(size.customers), drawn_customers])
    drawn = (size.products * random.random(size.rows) ** 2).astype(np.int64)
    follows = random.random(size.rows) < 0.6
    step = random.integers(1, 4, size.rows)
    first = np.r_[True, customers[1:] != customers[:-1]]
    products = drawn.copy()
    for row in np.flatnonzero(follows & ~first):
        before = products[row - 1]
        shelf = before - before % _SHELF
        products[row] = min(shelf + (before - shelf + step[row]) % _SHELF, size.products - 1)
    return customers, products


def write_shop(folder: Path, size: Size, seed: int = 0) -> tuple[Path, Path]:
    """Write both files; the rows of the log are in the order of their times, as a shop's database gives them."""
    random = np.random.default_rng(seed)
    customers, products = purchases(size, random)
    seconds = random.integers(0, _DAYS * 86_400, len(customers))
    seconds = seconds[np.lexsort((seconds, customers))]
    order = np.argsort(seconds, kind="stable")
    moments = np.datetime_as_string(_BEGIN + seconds[order].astype("timedelta64[s]"))
    stars = random.integers(1, 6, len(customers)).astype(str)
    stars[random.random(len(customers)) < 0.1] = ""
    orders = pd.DataFrame(
        {
            "customer": [f"C{customer:06d}" for customer in customers[order]],
            "sku": [f"SKU-{product:05d}" for product in products[order]],
            "purchased_at": np.char.add(moments, "+09:00"),
            "stars": stars,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log, titles = folder / "orders.csv", folder / "products.csv"
    orders.to_csv(log, index=False)
    names = [_name(product) for product in range(size.products)]
    skus = [f"SKU-{product:05d}" for product in range(size.products)]
    pd.DataFrame({"sku": skus, "product_name": names}).to_csv(titles, index=False)
    return log, titles


def _name(product: int) -> str:
    shelf, place = divmod(product, _SHELF)
    series = f'"{shelf // len(_SHELVES) + 1}" series'
    return f"{_COLOURS[place % len(_COLOURS)]} {_SHELVES[shelf % len(_SHELVES)]}, {series}, no. {place + 1}"


def main(given: Sequence[str]) -> None:
    """Write the files and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = Size()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=size.rows)
    parser.add_argument("--customers", type=int, default=size.customers)
    parser.add_argument("--products", type=int, default=size.products)
    chosen = parser.parse_args(given)
    for path in write_shop(chosen.folder, Size(chosen.rows, chosen.customers, chosen.products)):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(sys.argv[1:])
