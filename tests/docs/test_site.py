"""The documents as a site: what is generated is current, every page is listed, and every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

from src.core.paths import REPOSITORY
from tests.docs.configuration import PAGE, page

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def navigation() -> list[str]:
    """Every page that `mkdocs.yml` lists."""

    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(part)

    content = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    return list(pages(content["nav"]))


def test_the_page_of_keys_is_what_the_settings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.docs.configuration writes it anew"


def test_every_key_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\S+)` \|.*\| (.*) \|$", page(), flags=re.MULTILINE)
    assert len(rows) > 200
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = navigation()
    assert sorted(listed) == [str(path.relative_to(DOCS)) for path in PAGES]


def anchors(path: Path) -> set[str]:
    """The headings of a page as the site names them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        name = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading).lower()).strip()
        name = re.sub(r"[-\s]+", "-", name)
        found[name] = found.get(name, 0) + 1
    return set(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor and there.suffix == ".md" and anchor.isascii():
            assert anchor in anchors(there), target


def test_japanese_lines_are_joined_without_a_space() -> None:
    spec = spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = "探索し、\n  効いたかを `code`\nで言う。\n\n```\n図は\nそのまま\n```\nEnglish\nlines\n"
    joined = "探索し、効いたかを `code`\nで言う。\n\n```\n図は\nそのまま\n```\nEnglish\nlines\n"
    assert hooks.on_page_markdown(text, page=None) == joined


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("material") is None, reason="mkdocs-material is not here")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "index.html").is_file()
