"""Promises of pyproject.toml, poetry.lock and the Dockerfile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "poetry.lock").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def dependency_lines() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    tables = re.findall(r"^\[tool\.poetry\.(?:group\.\w+\.)?dependencies\]\n((?:\S.*\n)+)", text, flags=re.MULTILINE)
    return [line for table in tables for line in table.splitlines()]


def test_every_dependency_says_who_needs_it() -> None:
    assert len(dependency_lines()) >= 20
    for line in dependency_lines():
        assert re.search(r"# \S+", line), line


def test_the_project_is_no_package_and_locks_every_dependency() -> None:
    poetry = PYPROJECT["tool"]["poetry"]
    assert poetry["package-mode"] is False
    locked = {package["name"] for package in LOCK["package"]}
    wanted = {*poetry["dependencies"], *poetry["group"]["dev"]["dependencies"]} - {"python"}
    assert wanted <= locked
    assert LOCK["metadata"]["python-versions"] == poetry["dependencies"]["python"]


def test_the_lock_names_no_place_to_install_from() -> None:
    assert not [package["name"] for package in LOCK["package"] if "source" in package]
    links = re.findall(r"\S+://[^\s\"']+", (ROOT / "poetry.lock").read_text())
    assert all(link.startswith("https://github.com/") for link in links), links  # in a package's description


def test_dockerfile_holds_tools_and_no_source() -> None:
    assert re.search(r"^FROM pytorch/pytorch:\S+-cuda\S+-cudnn9-devel$", DOCKERFILE, flags=re.MULTILINE)
    assert not re.search(r"^\s*(COPY|ADD)\b", DOCKERFILE, flags=re.MULTILINE | re.IGNORECASE)
    assert "\nWORKDIR /workspace\n" in DOCKERFILE
    for package in ("git", "curl", "build-essential"):
        assert re.search(rf"apt-get install .*\b{package}\b", DOCKERFILE)
    assert "POETRY_VIRTUALENVS_IN_PROJECT=false" in DOCKERFILE  # else poetry would take the host's .venv


def test_dockerfile_takes_the_torch_of_the_lock() -> None:
    torch = next(package["version"] for package in LOCK["package"] if package["name"] == "torch")
    assert f"pytorch/pytorch:{torch}-" in DOCKERFILE
