"""What a server did, in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

#: upper ends of the buckets of seconds
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: addresses by name; any other is one label, so that strangers cannot fill the memory with labels
_PATHS = frozenset({"/", "/recommend", "/items", "/labelled", "/health", "/metrics", "/docs", "/openapi.json"})


class ServerMetrics:
    """Counts requests, their seconds, and recommended items."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(_BUCKETS) + 1)
        self._seconds, self._items = 0.0, 0

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered.

        Args:
            path: what was asked.
            status: the answer's HTTP status.
            seconds: how long it took.
        """
        with self._lock:
            self._requests[path if path in _PATHS else "other", status] += 1
            self._seconds += seconds
            self._buckets[bisect_left(_BUCKETS, seconds)] += 1

    def recommended(self, items: int) -> None:
        """So many items were recommended."""
        with self._lock:
            self._items += items

    def text(self) -> str:
        """Everything, a line each."""
        with self._lock:
            requests, buckets = sorted(self._requests.items()), list(self._buckets)
            seconds, items = self._seconds, self._items
        lines = [
            "# HELP recommender_requests_total Requests that were answered.",
            "# TYPE recommender_requests_total counter",
        ]
        lines += [f'recommender_requests_total{{path="{p}",status="{s}"}} {count}' for (p, s), count in requests]
        lines += [
            "# HELP recommender_request_seconds Time to an answer.",
            "# TYPE recommender_request_seconds histogram",
        ]
        total = 0
        for end, count in zip((*_BUCKETS, "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'recommender_request_seconds_bucket{{le="{end}"}} {total}')
        lines += [f"recommender_request_seconds_sum {seconds:.6f}", f"recommender_request_seconds_count {total}"]
        lines += [
            "# HELP recommender_items_total Items that were recommended.",
            "# TYPE recommender_items_total counter",
        ]
        return "\n".join([*lines, f"recommender_items_total {items}"]) + "\n"
