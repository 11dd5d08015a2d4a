"""The user's own code: found by its name, judged before it is called, and never taken from a result folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.config.overrides import expand_params
from src.core.documents import read_yaml_mapping
from src.core.errors import ConfigError
from src.core.paths import MANIFEST, require_finished
from src.core.plugins import build_plugin, find_plugin
from src.core.result_files import COMMAND_FILE
from src.tuning.space_document import load_search_space

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


def _read(kind: str, folder: Path, name: str) -> None:
    """Read a document of some kind in a folder, which names code."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (MANIFEST if kind == "manifest" else "document.yaml")
    if kind == "params":
        path.write_text(f"active.policy: {name}\n")
        assert expand_params([f"params={path}"]) == [f'active.policy="{name}"']
    elif kind == "space":
        parameters = f"parameters: {{active.policy: {{type: categorical, choices: [all, '{name}']}}}}"
        path.write_text(f"stage: distill\nmetric: ndcg_20\ndirection: maximize\n{parameters}\n")
        load_search_space(path, {"active": {"policy": "all"}}, ["ndcg_20"])
    elif kind == "settings":
        path.write_text(f"active: {{policy: '{name}'}}\n")
        read_yaml_mapping(path)
    else:
        path.write_text(f'{{"settings": {{"architecture": "{name}"}}}}')
        require_finished(folder)


KINDS = ["params", "space", "settings", "manifest"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("theirs", "theirs.evil:factory"),
        ("theirs", "theirs.inner.evil:factory"),
        ("theirs/inner", "theirs.evil:factory"),
        ("theirs/other", "theirs.inner.evil:factory"),
        ("theirs", "theirs.odd-name:factory"),
    ],
)
def test_a_document_cannot_name_the_code_that_came_with_it(workplace: Path, kind: str, folder: str, name: str) -> None:
    (workplace / "theirs" / "inner").mkdir(parents=True)
    for place in ("evil.py", "inner/evil.py", "odd-name.py"):
        (workplace / "theirs" / place).write_text(CODE)
    with pytest.raises(ConfigError, match="names code that came with it"):
        _read(kind, workplace / folder, name)
    assert not (workplace / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_may_name_the_users_own_code(
    workplace: Path, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (workplace / "mine").mkdir()
    for place in ("own_policy.py", "mine/policy.py"):
        (workplace / place).write_text(CODE)
    for folder, name in (
        (workplace, "own_policy:factory"),  # both lie where the command is started
        (workplace, "mine.policy:factory"),
        (workplace / "spaces", "own_policy:factory"),
        (workplace / "spaces", "mine.policy:factory"),
        (tmp_path_factory.mktemp("elsewhere"), "mine.policy:factory"),
    ):
        _read(kind, folder, name)
    # the folder that holds both is the user's choice where it is on the path itself
    monkeypatch.syspath_prepend(str(workplace / "mine"))
    _read(kind, workplace / "mine", "policy:factory")


def test_a_link_does_not_hide_where_a_document_lies(workplace: Path) -> None:
    (workplace / "theirs").mkdir()
    (workplace / "theirs" / "evil.py").write_text(CODE)
    (workplace / "theirs" / "params.yaml").write_text("active.policy: theirs.evil:factory\n")
    (workplace / "params.yaml").symlink_to("theirs/params.yaml")
    with pytest.raises(ConfigError, match="names code that came with it"):
        expand_params([f"params={workplace / 'params.yaml'}"])


def test_what_the_user_types_is_the_users_choice(workplace: Path) -> None:
    (workplace / "mine").mkdir()
    (workplace / "mine" / "policy.py").write_text(CODE)
    (workplace / "mine" / "params.yaml").write_text("active.policy: mine.policy:factory\n")
    typed = "active.policy=mine.policy:factory"
    assert expand_params([f"params={workplace / 'mine' / 'params.yaml'}", typed]) == [typed]
    assert find_plugin("x", "mine.policy:factory", [])(1) == 2


@pytest.mark.parametrize("content", ['{"name": "a web page"}', "[]", "{", "[" * 100_000])
def test_another_programs_manifest_is_no_result(workplace: Path, content: str) -> None:
    (workplace / MANIFEST).write_text(content)
    (workplace / "my_own.py").write_text(CODE)
    assert find_plugin("x", "my_own:factory", [])(1) == 2


@pytest.mark.parametrize("name", ["os:getcwd", "math:hypot.x", ":", ".:x", "..a:b", "os"])
def test_what_is_no_factory_of_settings_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be found|is not callable as factory\(settings\)|not a factory"):
        build_plugin("x", name, {}, object())
