"""The user's own code: found by its name, judged before it is called, and never taken from a result folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.core.paths import COMMAND_FILE, MANIFEST
from src.core.plugins import build_plugin, find_plugin

CODE = "from pathlib import Path\nPath('ran').touch()\n\ndef factory(settings):\n    return settings + 1\n"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which commands are started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("marker", "content"),
    [(COMMAND_FILE, "{}"), (MANIFEST, '{"kind": "student"}'), (MANIFEST, '{"fingerprints": {}}')],
)
@pytest.mark.parametrize("module", ["evil", "inner.evil", "package"])
def test_code_in_a_result_folder_is_never_run(workplace: Path, marker: str, content: str, module: str) -> None:
    result = workplace / "a_result"
    (result / "inner").mkdir(parents=True)
    (result / "package").mkdir()
    (result / marker).write_text(content)
    for place in ("evil.py", "inner/evil.py", "package/__init__.py"):
        (result / place).write_text(CODE)
    with pytest.raises(ConfigError, match="is code that lies in a result folder"):
        find_plugin("x", f"a_result.{module}:factory", ["ours"])
    assert not (workplace / "ran").exists()


@pytest.mark.parametrize("content", ['{"name": "a web page"}', "[]", "{", "[" * 100_000])
def test_another_programs_manifest_is_no_result(workplace: Path, content: str) -> None:
    (workplace / MANIFEST).write_text(content)
    (workplace / "my_own.py").write_text(CODE)
    assert find_plugin("x", "my_own:factory", [])(1) == 2


@pytest.mark.parametrize("name", ["os:getcwd", "math:hypot.x", ":", ".:x", "..a:b", "os"])
def test_what_is_no_factory_of_settings_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be found|is not callable as factory\(settings\)|not a factory"):
        build_plugin("x", name, {}, object())
