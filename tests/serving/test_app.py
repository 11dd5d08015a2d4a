"""The HTTP interface: answers, limits, the token, and no 5xx whatever is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from src.serving.app import Limits, build_app
from src.serving.students import ServedStudent, open_student
from tests.serving.finished import NUM_ITEMS

LIMITS = Limits(body_kb=4, histories=3, history_length=5, k=20)
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def students(transitions: Path, popularity: Path) -> list[ServedStudent]:
    return [open_student(popularity, 1), open_student(transitions, 1)]


@pytest.fixture
def client(students: list[ServedStudent]) -> Iterator[TestClient]:
    with TestClient(build_app(students, LIMITS, None, 1), raise_server_exceptions=False) as client:
        yield client


def test_a_student_answers_as_it_does_elsewhere(client: TestClient, served: ServedStudent) -> None:
    asked = {"histories": [["100", 101], ["x", "102"], []], "k": 3, "student": "transitions"}
    answer = client.post("/recommend", json=asked)
    assert answer.status_code == 200
    content = answer.json()
    assert content["student"] == "transitions"
    assert content["unknown"] == [[], ["x"], []]
    for row, history in zip(content["recommendations"], ([0, 1], [2], []), strict=True):
        wanted = served.recommend(history, 3, True)
        assert [(one["item"], one["title"]) for one in row] == [(one.item, one.title) for one in wanted]
        assert [one["score"] for one in row] == pytest.approx([one.score for one in wanted], abs=1e-4)


def test_a_student_whose_scores_are_no_numbers_is_told(transitions: Path) -> None:
    damaged = open_student(transitions, 1)
    damaged.ranked = lambda history, length, k, seen: (  # type: ignore[method-assign]
        np.zeros((len(history), k), np.int64),
        np.full((len(history), k), np.nan, np.float32),
    )
    with TestClient(build_app([damaged], LIMITS, None, 1), raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json={"histories": [["100"]], "k": 2})
    assert answer.status_code == 500
    assert "its scores are no finite numbers for 1 of 1 histories" in answer.json()["detail"][0]["rule"]


def test_the_first_student_answers_where_none_is_named(client: TestClient) -> None:
    assert client.post("/recommend", json={"histories": [[]]}).json()["student"] == "popularity"


def test_seen_items_come_back_where_that_is_asked(client: TestClient) -> None:
    asked: dict[str, Any] = {"histories": [["100", "101", "102"]], "k": 20, "exclude_seen": True}
    first = client.post("/recommend", json=asked).json()["recommendations"][0]
    assert len(first) == 20
    assert not {"100", "101", "102"} & {one["item"] for one in first}


def test_titles_are_found(client: TestClient) -> None:
    found = client.get("/items", params={"query": "title 2", "limit": 3}).json()
    assert [one["title"] for one in found] == ["Title 2", "Title 20", "Title 21"]
    assert client.get("/items", params={"query": "107"}).json() == [{"item": "107", "title": "Title 7"}]
    assert client.get("/items").json() == []


def test_the_page_and_what_it_needs_come_from_here(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{address}").status_code == 200, address
    everything = page.text + client.get("/page.js").text + client.get("/style.css").text
    assert not re.search(r"://|[\"'(]//", everything)  # no address of another server
    assert "innerHTML" not in everything
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/recommend", "/items", "/health", "/metrics"}


def test_what_was_done_is_counted(client: TestClient) -> None:
    client.post("/recommend", json={"histories": [[]], "k": 7})
    client.post("/recommend", json={"histories": []})
    client.get("/nowhere/one")
    client.get("/nowhere/two")
    lines = client.get("/metrics").text.splitlines()
    assert 'recommender_requests_total{path="/recommend",status="200"} 1' in lines
    assert 'recommender_requests_total{path="/recommend",status="422"} 1' in lines
    assert 'recommender_requests_total{path="other",status="404"} 2' in lines
    assert "recommender_items_total 7" in lines
    assert "recommender_request_seconds_count 4" in lines
    assert 'recommender_request_seconds_bucket{le="+Inf"} 4' in lines


def test_health_tells_who_is_served(client: TestClient) -> None:
    assert client.get("/health").json() == {
        "status": "ok", "students": ["popularity", "transitions"], "items": NUM_ITEMS, "teacher": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"histories": [["100"]] * 4}, "histories"),
        ({"histories": [["100"] * 6]}, "histories"),
        ({"histories": [[]], "k": 21}, "k"),
        ({"histories": [[]], "k": 0}, "body.k"),
        ({"histories": [[]], "k": True}, "body.k"),
        ({"histories": [[]], "k": "5"}, "body.k"),
        ({"histories": [[]], "student": "nobody"}, "student"),
        ({"histories": [[]], "colour": "red"}, "body.colour"),
        ({"histories": [["x"]], "unknown": "refuse"}, "histories"),
        ({"histories": [[]], "unknown": "popular"}, "body.unknown"),
        ({"histories": "100"}, "body.histories"),
        ({}, "body.histories"),
    ],
)
def test_a_request_that_breaks_a_rule_is_told_which(client: TestClient, asked: Any, field: str) -> None:
    answer = client.post("/recommend", json=asked)
    assert answer.status_code == 422
    found = answer.json()["detail"][0]
    assert found["field"] == field
    assert found["rule"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"histories": [[NaN]]}', b'{"histories": [[]], "k": NaN}',
        b'{"histories": [[]], "k": 1e400}', b'{"histories": [[]], "k": ' + b"9" * 3000 + b"}",
        b'{"histories": [["\\ud800"]]}', b'{"histories": [["\\ud800"]], "unknown": "refuse"}',
        b'{"histories": [[]], "student": "\\udfff"}', b'{"histories": ["\\ud800"]}', b'{"\\ud800": 1}',
        b"[" * 4000, b'{"histories": [[]], "k": {"a": [1]}}', b'{"histories": [[null]]}',
        b'{"histories": [["\\u0000"]]}',
    ],
    ids=lambda body: ascii(body[:40]),
)  # fmt: skip
def test_no_body_is_answered_with_a_server_error(client: TestClient, body: bytes) -> None:
    answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text


def test_a_large_body_is_not_read(client: TestClient) -> None:
    assert client.post("/recommend", content=b" " * 4097).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    # sent in parts, its length is not told in advance
    answer = client.post("/recommend", content=parts())
    assert answer.status_code == 413
    assert client.post("/recommend", content=b"{}", headers={"Content-Length": "-5"}).status_code < 500


def test_a_catalogue_smaller_than_the_limit_bounds_k(students: list[ServedStudent]) -> None:
    with TestClient(build_app(students, Limits(), None, 1)) as client:
        answer = client.post("/recommend", json={"histories": [[]], "k": NUM_ITEMS + 1})
        assert answer.json()["detail"][0]["rule"] == f"at most {NUM_ITEMS} items, which is the catalogue"


def test_without_the_token_nothing_is_told(students: list[ServedStudent]) -> None:
    with TestClient(build_app(students, LIMITS, TOKEN, 1)) as client:
        right = {"Authorization": f"Bearer {TOKEN}"}
        for path in ("/items", "/metrics", "/openapi.json", "/docs", "/recommend"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": b"Bearer \xff"}).status_code == 401
            assert client.get(path, headers=right).status_code in (200, 405)
        for path in ("/", "/health", "/page.js"):
            assert client.get(path).status_code == 200
