"""Students over HTTP, on this machine unless its owner says otherwise and sets a token."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from src.core.errors import ConfigError, gather
from src.core.logging import console
from src.core.settings import STRICT
from src.serving.beside import LabelledTeacher, stand_beside
from src.serving.students import ServedStudent, open_student, require_same_catalogue


@settings_dataclass(frozen=True, config=STRICT)
class ServeSettings:
    """Who is served, where, and what a request may hold."""

    student: Annotated[Path | None, Field(description="an exported folder, or a result folder")] = None
    students: Annotated[
        tuple[Path, ...], Field(description="several, shown side by side on the page: students=[A,B]")
    ] = ()
    beside: Annotated[
        Path | None,
        Field(description="a result folder whose baseline and, where there are labels, teacher are shown beside it"),
    ] = None
    host: Annotated[
        str, Field(min_length=1, description="address to listen on; another than this machine's own needs token_file")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0: any that is free")] = 8080
    token_file: Annotated[
        Path | None, Field(description="a file whose text every request must bring: Authorization: Bearer TEXT")
    ] = None
    threads: Annotated[int, Field(ge=0, description="threads of ONNX Runtime for a request; 0: one a core")] = 1
    max_body_kb: Annotated[int, Field(ge=1, le=65536, description="largest body of a request")] = 256
    max_histories: Annotated[int, Field(ge=1, le=4096, description="most histories in a request")] = 64
    max_history: Annotated[int, Field(ge=1, le=100_000, description="most items in a history")] = 1000
    max_k: Annotated[int, Field(ge=1, le=10_000, description="most items for a history")] = 100


@dataclass(frozen=True, eq=False)
class ServePlan:
    """What `check_serve` found: students of one catalogue, the token, and a socket that is bound already."""

    students: list[ServedStudent]
    token: str | None
    bound: socket.socket


def check_serve(settings: ServeSettings) -> ServePlan:
    """Everything that can be known to be wrong before the first request.

    Raises:
        ConfigError: with every problem: packages, folders, catalogues, address, token, a port that is taken.
    """
    found: dict[str, Any] = {}

    def packages() -> None:
        if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
            step = "install the extra `serve`: poetry install --extras serve"
            raise ConfigError.one("package", missing[0], "is not installed", step)

    def students() -> None:
        folders = [*([settings.student] if settings.student else []), *settings.students]
        if not folders:
            raise ConfigError.one("student", None, "is needed", "student=FOLDER, or students=[A,B]")
        opened = [open_student(folder, settings.threads) for folder in folders]
        if settings.beside is not None:
            others = stand_beside(settings.beside)
            teachers = [one for one in others if isinstance(one, LabelledTeacher)]
            opened = [*(one for one in others if one not in teachers), *opened, *teachers]
        require_same_catalogue(opened)
        found["students"] = with_own_names(opened)

    def token() -> None:
        found["token"] = read_token(settings.token_file)
        if found["token"] is None and not is_own_machine(settings.host):
            rule = "can be reached from other machines: a token is needed"
            raise ConfigError.one("host", settings.host, rule, "write one into a file and name it: token_file=FILE")

    gather(packages, students, token)
    return ServePlan(found["students"], found["token"], bind(settings.host, settings.port))


def with_own_names(students: Sequence[ServedStudent]) -> list[ServedStudent]:
    """Students of one name are told apart by a number."""
    taken: set[str] = set()
    for student in students:
        wanted, number = student.name, 1
        while student.name in taken:
            number += 1
            student.name = f"{wanted} ({number})"
        taken.add(student.name)
    return list(students)


def read_token(path: Path | None) -> str | None:
    """The text of a token file; raises ``ConfigError`` for one that is missing, empty, or no plain text."""
    if path is None:
        return None
    step = "write at least 16 letters and digits into it"
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.one("token_file", str(path), f"cannot be read ({error})", step) from None
    if len(token) < 16 or any(letter.isspace() for letter in token):
        raise ConfigError.one("token_file", str(path), "must hold one word of at least 16 characters", step)
    return token


def is_own_machine(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address; raises ``ConfigError`` where the port is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError.one("host", host, f"is no address ({error.strerror})", "use 127.0.0.1") from None
    try:
        # a port that a server has just left may be taken again; one that is in use may not
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        step = "choose another one, or port=0 for any that is free"
        raise ConfigError.one("port", port, f"cannot be listened on at {host} ({error.strerror})", step) from None
    return bound


def serve(settings: ServeSettings, plan: ServePlan) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    import uvicorn  # an extra of the environment

    from src.serving.app import Limits, build_app

    limits = Limits(settings.max_body_kb, settings.max_histories, settings.max_history, settings.max_k)
    app = build_app(plan.students, limits, plan.token, parallel=os.cpu_count() or 1)
    port = plan.bound.getsockname()[1]
    console.print(
        f"http://{settings.host}:{port}/ (interface: /docs, counters: /metrics; Ctrl-C ends it)", markup=False
    )
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=30, server_header=False)
    # Ctrl-C is how a server ends: uvicorn has answered what was under way by then, and hands the signal on
    with plan.bound, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[plan.bound])
