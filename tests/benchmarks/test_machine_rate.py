"""The interval of a median."""

from __future__ import annotations

import pytest

from benchmarks.machine_rate import median_interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # both ends of five lie on one side of the median with a chance of 2/32: above 5 %, so all there is
        ([5, 1, 4, 2, 3], (1, 5)),
        # of six 2/64: below
        ([6, 5, 4, 3, 2, 1], (1, 6)),
        # of nine 2/512 + 2·9/512 = 3.9 % below the second and above the eighth; the third: 18 %
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], (2, 8)),
        ([7], (7, 7)),
    ],
)
def test_the_interval_of_a_median_by_the_binomial_distribution(
    values: list[float], expected: tuple[float, float]
) -> None:
    assert median_interval(values) == expected
