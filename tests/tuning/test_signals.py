"""What a search is told of Ctrl-C, SIGTERM and a closed terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from src.core.errors import HUNG_UP, INTERRUPTED, TERMINATED, Paused
from src.tuning.processes import graceful_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signals' handlers as on a terminal, whatever these tests were started from; restored at the end."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    assert {number: signal.signal(number, handler) for number, handler in before.items()} == usual


@pytest.mark.parametrize(
    ("number", "reason", "code"),
    [(signal.SIGINT, INTERRUPTED, 130), (signal.SIGTERM, TERMINATED, 143), (signal.SIGHUP, HUNG_UP, 129)],
)
def test_a_signal_is_told_with_its_reason(number: signal.Signals, reason: str, code: int) -> None:
    told: list[str] = []
    with graceful_signals(told.append):
        os.kill(os.getpid(), number)
    assert told == [reason]
    assert Paused(reason).exit_code == code


def test_a_second_signal_ends_at_once_and_a_terminal_may_be_closed_twice() -> None:
    told: list[str] = []
    with graceful_signals(told.append):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert told == [HUNG_UP]


def test_a_search_under_nohup_is_not_told_of_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told: list[str] = []
    try:
        with graceful_signals(told.append):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told == []
