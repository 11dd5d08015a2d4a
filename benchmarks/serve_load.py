"""A server under load, on this machine: p50, p99, requests a second; then a thousand bad requests at once.

python -m benchmarks.serve_load --items 20000 --requests 2000 --clients 8

The server is the command's own, in a process of its own; clients and server share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from benchmarks.recommend_rate import drawn_export
from src.core.paths import REPOSITORY

BAD: list[bytes] = [
    b"", b"{", b"null", b'{"histories": "x"}', b'{"histories": [[]], "k": 0}', b'{"histories": [[NaN]]}',
    b'{"histories": [["\\ud800"]], "unknown": "refuse"}', b"[" * 5000, b'{"histories": [[]], "student": "nobody"}',
    b" " * 300_000,
]  # fmt: skip


async def good(client: httpx.AsyncClient, requests: int, clients: int, num_items: int) -> list[float]:
    """Seconds of each request; as many are under way at once as there are clients."""
    random, seconds, left = np.random.default_rng(0), [], iter(range(requests))

    async def one_after_another() -> None:
        for _ in left:
            history = [f"i{item}" for item in random.integers(0, num_items, int(random.integers(1, 50)))]
            begun = time.perf_counter()
            answer = await client.post("/recommend", json={"histories": [history], "k": 10})
            seconds.append(time.perf_counter() - begun)
            answer.raise_for_status()

    await asyncio.gather(*(one_after_another() for _ in range(clients)))
    return seconds


async def bad(client: httpx.AsyncClient, requests: int) -> collections.Counter[int]:
    """The statuses of requests that break a rule, all under way at once."""

    async def send(number: int) -> int:
        headers = {"Content-Type": "application/json"}
        return (await client.post("/recommend", content=BAD[number % len(BAD)], headers=headers)).status_code

    return collections.Counter(await asyncio.gather(*map(send, range(requests))))


async def measure(address: str, chosen: argparse.Namespace) -> None:
    """Wait until the server is up, then print what it did."""
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as client:
        await good(client, 20, 1, chosen.items)
        begun = time.perf_counter()
        seconds = np.array(await good(client, chosen.requests, chosen.clients, chosen.items)) * 1000
        rate = len(seconds) / (time.perf_counter() - begun)
        middle, late = np.percentile(seconds, [50, 99])
        print(
            f"{chosen.items:,} items, {chosen.clients} clients, {len(seconds):,} requests: p50 {middle:.1f} ms, "
            f"p99 {late:.1f} ms, {rate:,.0f} a second"
        )
        found = await bad(client, chosen.bad)
        print(f"{chosen.bad:,} bad requests at once: {dict(sorted(found.items()))}")
        assert not [status for status in found if status >= 500], "a bad request must not be the server's error"
        await good(client, 5, 1, chosen.items)


def main(given: Sequence[str] | None = None) -> None:
    """Start a server, ask it, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bad", type=int, default=1000)
    parser.add_argument("--student", default="transformer")
    parser.add_argument("--width", type=int, default=64)
    chosen = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as name:
        student = drawn_export(Path(name), chosen.items, chosen.student, chosen.width)
        command = [sys.executable, "-m", "src.exp.serve", f"student={student}", "port=0"]
        server = subprocess.Popen(
            [*command, f"hydra.run.dir={name}/run"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            address = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            asyncio.run(measure(address, chosen))
        finally:
            server.terminate()
            server.wait(timeout=60)


if __name__ == "__main__":
    main()
