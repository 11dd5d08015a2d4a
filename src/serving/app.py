"""The HTTP interface of exported students. What a request may hold is limited before anything is computed."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from src.core.errors import ProblemsFound
from src.serving.beside import LabelledTeacher
from src.serving.catalogue import padded
from src.serving.server_metrics import ServerMetrics
from src.serving.students import Recommendation, ServedStudent

_WEB = Path(__file__).parent / "web"
#: what may be read without a token: the page asks for one, and a probe has none
_OPEN = frozenset({"/", "/health", "/page.js", "/style.css", "/favicon.ico"})


@dataclass(frozen=True)
class Limits:
    """What a request may hold."""

    body_kb: int = 256
    histories: int = 64
    history_length: int = 1000
    k: int = 100


class RecommendRequest(BaseModel):
    """A request for recommendations."""

    model_config = ConfigDict(extra="forbid", strict=True)

    histories: list[list[str | int]] = Field(description="raw item ids of each user, oldest first", min_length=1)
    k: int = Field(default=10, ge=1, description="items for each")
    exclude_seen: bool = Field(default=True, description="never recommend what is in the history")
    student: str | None = Field(default=None, description="one of those that /health lists; the first if left out")
    unknown: Literal["skip", "refuse"] = Field(default="skip", description="ids that the student does not know")


class RecommendedItem(BaseModel):
    """A recommended item."""

    item: str
    title: str
    score: float


class RecommendResponse(BaseModel):
    """Recommendations, best first, for each history; and the ids of each that the student does not know."""

    student: str
    recommendations: list[list[RecommendedItem]]
    unknown: list[list[str]]


class CatalogueItem(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str


class Health(BaseModel):
    """Who is served."""

    status: Literal["ok"] = "ok"
    students: list[str]
    items: int
    teacher: str | None = Field(default=None, description="the one that knows labelled histories alone")


class InvalidRequest(Exception):
    """A request that breaks a rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(rule)
        self.detail = [finding(field, value, rule)]


def finding(field: str, value: object, rule: str) -> dict[str, str]:
    """A finding about a request.

    Args:
        field: what was wrong in it.
        value: what stood there; shown in ASCII, because not all that JSON can say can be sent back.
        rule: what it breaks.
    """
    return {"field": field, "value": ascii(value)[:200], "rule": rule}


def build_app(students: Sequence[ServedStudent], limits: Limits, token: str | None, parallel: int) -> FastAPI:
    """The application.

    Args:
        students: over one catalogue, with different names; the first is asked where a request names none.
        limits: what a request may hold.
        token: what ``Authorization: Bearer`` must bring; None lets everybody in.
        parallel: how many requests are computed at once; others wait.
    """
    app = FastAPI(title="Recommendations", description=__doc__.strip(), version="1", docs_url="/docs", redoc_url=None)
    meter = ServerMetrics()
    by_name = {student.name: student for student in students}
    catalogue = students[0].catalogue
    turn = threading.BoundedSemaphore(parallel)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [finding(".".join(map(str, e["loc"])), e.get("input"), str(e["msg"])) for e in error.errors()[:20]]
        return JSONResponse({"detail": found}, 422)

    @app.exception_handler(InvalidRequest)
    async def broken_rule(request: Request, error: InvalidRequest) -> Response:
        return JSONResponse({"detail": error.detail}, 422)

    @app.exception_handler(ProblemsFound)
    async def damaged(request: Request, error: ProblemsFound) -> Response:
        found = [finding(one.field, one.value, one.rule) for one in error.problems]
        return JSONResponse({"detail": found}, 500)

    @app.post("/recommend", response_model=RecommendResponse, responses={401: {}, 413: {}, 422: {}})
    def recommend(request: RecommendRequest) -> RecommendResponse:
        """The best items for each history."""
        student = students[0] if request.student is None else by_name.get(request.student)
        if student is None:
            raise InvalidRequest("student", request.student, f"must be one of {', '.join(by_name)}")
        _check(request, limits, catalogue.num_items)
        found = [catalogue.known(history) for history in request.histories]
        unknown = [ids for _, ids in found]
        if request.unknown == "refuse" and (missing := next((ids[0] for ids in unknown if ids), None)) is not None:
            raise InvalidRequest("histories", missing, "is unknown to the student")
        history, length = padded([known for known, _ in found], catalogue.num_items)
        with turn:
            items, scores = student.best(history, length, request.k, request.exclude_seen)
        named = [student.named(*row) for row in zip(items, scores, strict=True)]
        meter.recommended(sum(map(len, named)))
        return RecommendResponse(
            student=student.name,
            recommendations=[list(map(_item, row)) for row in named],
            unknown=[[ascii(raw)[1:-1] for raw in ids] for ids in unknown],
        )

    @app.get("/items", response_model=list[CatalogueItem])
    def search(
        query: str = Query(default="", max_length=200), limit: int = Query(default=20, ge=1, le=100)
    ) -> list[CatalogueItem]:
        """Items whose title holds some words."""
        raw_ids, titles = catalogue.id_map.raw_ids, catalogue.id_map.titles
        return [CatalogueItem(item=raw_ids[place], title=titles[place]) for place in catalogue.search(query, limit)]

    teacher = next((student for student in students if isinstance(student, LabelledTeacher)), None)

    @app.get("/labelled", response_model=list[CatalogueItem])
    def labelled(number: int = Query(default=0, ge=0, le=2**31)) -> list[CatalogueItem]:
        """One of the histories that the teacher labelled, oldest first; none where no teacher is served."""
        history = [] if teacher is None else teacher.labelled(number)
        raw_ids, titles = catalogue.id_map.raw_ids, catalogue.id_map.titles
        return [CatalogueItem(item=raw_ids[place], title=titles[place]) for place in history]

    @app.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether it is up, and whom it serves."""
        known = None if teacher is None else teacher.name
        return Health(students=list(by_name), items=catalogue.num_items, teacher=known)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters and times, in Prometheus' text format."""
        return meter.text()

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        """There is none: a browser that asks is not told of an error."""
        return Response(status_code=204)

    for address, file in {"/": "page.html", "/page.js": "page.js", "/style.css": "style.css"}.items():
        app.add_api_route(address, _file(_WEB / file), include_in_schema=False)
    app.add_middleware(_RequestGuard, limits=limits, token=token, meter=meter)
    return app


def _check(request: RecommendRequest, limits: Limits, num_items: int) -> None:
    longest = max(map(len, request.histories))
    for field, value, most, why in (
        ("histories", len(request.histories), limits.histories, "histories in one request"),
        ("histories", longest, limits.history_length, "items in one history"),
        ("k", request.k, limits.k, "items for each history"),
        ("k", request.k, num_items, "items, which is the catalogue"),
    ):
        if value > most:
            raise InvalidRequest(field, value, f"at most {most} {why}")


def _item(found: Recommendation) -> RecommendedItem:
    return RecommendedItem(item=found.item, title=found.title, score=found.score)


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def answer() -> FileResponse:
        return FileResponse(path)

    return answer


_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class _BodyTooLarge(BaseException):
    """A body that is longer than allowed. No `Exception`: the framework would tell it as a body it cannot parse."""


class _RequestGuard:
    """Measures every request and turns away those without the token and those that are too large."""

    def __init__(self, app: Any, limits: Limits, token: str | None, meter: ServerMetrics) -> None:
        self.app, self.limit, self.token, self.meter = app, limits.body_kb * 1024, token, meter

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """As ASGI asks for it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), [0]

        async def told(message: _Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._limited(scope, receive, told, status)
            else:
                await refusal(scope, receive, told)  # type: ignore[arg-type]
        finally:
            self.meter.request(scope["path"], status[0] or 500, time.perf_counter() - begun)

    async def _limited(self, scope: _Message, receive: _Receive, send: _Send, status: list[int]) -> None:
        received = 0

        async def counted() -> _Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _BodyTooLarge
            return message

        try:
            await self.app(scope, counted, send)
        except _BodyTooLarge:
            if not status[0]:
                await self._too_large()(scope, receive, send)  # type: ignore[arg-type]

    def _refusal(self, scope: _Message) -> JSONResponse | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.token is not None and scope["path"] not in _OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                found = [finding("Authorization", "missing or wrong", "must be: Bearer TOKEN")]
                return JSONResponse({"detail": found}, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self.limit:
            return self._too_large()
        return None

    def _too_large(self) -> JSONResponse:
        return JSONResponse({"detail": [finding("body", "too large", f"at most {self.limit} bytes")]}, 413)
