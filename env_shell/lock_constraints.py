"""Turn poetry.lock into lines that pip understands, so that pip installs what Poetry would.

Standard library only: it runs before anything is installed. One line per locked package, `name==version ; marker`;
pip itself evaluates the markers.

    python env_shell/lock_constraints.py poetry.lock                  # every package of the groups main and dev
    python env_shell/lock_constraints.py poetry.lock --without-cuda   # the same without NVIDIA's libraries and triton
    python env_shell/lock_constraints.py poetry.lock --only torch     # one package
    python env_shell/lock_constraints.py poetry.lock --extras quantised   # with the packages of an optional extra
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EXTRA = re.compile(r"""extra == ["']([^"']+)["']""")
# pip knows of no extra here: an extra that was asked for holds always, another one never
ALWAYS, NEVER = 'python_version >= "3"', 'python_version < "3"'


class LockError(Exception):
    """poetry.lock cannot be read, or lacks what was asked for."""


def read_packages(lock: Path) -> list[dict[str, Any]]:
    """Read the packages of a lock file of Poetry 2 (it notes the groups of every package; older ones do not)."""
    try:
        document = tomllib.loads(lock.read_text(encoding="utf-8"))
    except OSError as error:
        raise LockError(f"{lock} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"{lock} is not valid TOML ({error}); restore it with git or run `poetry lock`") from error
    packages: list[dict[str, Any]] = document.get("package", [])
    if not packages:
        raise LockError(f"{lock} lists no package; run `poetry lock`")
    if any("groups" not in package for package in packages):
        raise LockError(f"{lock} was written by Poetry 1, without groups; run `poetry lock` with Poetry 2")
    return packages


def is_cuda(name: str) -> bool:
    """Tell whether a package only serves torch's CUDA build: NVIDIA's libraries and the triton compiler."""
    return name == "triton" or name.startswith(("nvidia-", "cuda-"))


def extras_of(package: dict[str, Any]) -> set[str]:
    """Return the optional extras that a package belongs to."""
    markers = package.get("markers", "")
    return set(EXTRA.findall(markers if isinstance(markers, str) else " ".join(markers.values())))


def with_extras(marker: str, extras: Iterable[str]) -> str:
    """Return a marker that no longer asks for extras."""
    extras = set(extras)
    decided = EXTRA.sub(lambda found: ALWAYS if found[1] in extras else NEVER, marker)
    return "" if decided == ALWAYS else decided


def marker_for(package: dict[str, Any], groups: Iterable[str], extras: Iterable[str] = ()) -> str | None:
    """Return the condition under which one of `groups` needs the package; "" is always, None is never."""
    markers, extras = package.get("markers", ""), set(extras)
    wanted = [group for group in groups if group in package["groups"]]
    if not wanted or (package.get("optional", False) and not extras & extras_of(package)):
        return None
    if isinstance(markers, str):
        markers = with_extras(markers, extras)
    else:
        markers = {group: with_extras(marker, extras) for group, marker in markers.items()}
    if isinstance(markers, str):
        return markers
    conditions = [markers.get(group, "") for group in wanted]
    if "" in conditions:
        return ""
    return conditions[0] if len(conditions) == 1 else " or ".join(f"({condition})" for condition in conditions)


def requirement_lines(
    packages: Iterable[dict[str, Any]],
    groups: Iterable[str],
    with_cuda: bool,
    only: str | None = None,
    extras: Iterable[str] = (),
) -> Iterator[str]:
    """Yield `name==version ; marker` for every package that one of `groups` needs, in the order of the lock."""
    groups, extras = list(groups), list(extras)
    for package in packages:
        name, marker = package["name"], marker_for(package, groups, extras)
        if marker is None or (is_cuda(name) and not with_cuda) or only not in (None, name):
            continue
        pin = f"{name}=={package['version']}"
        yield f"{pin} ; {marker}" if marker else pin


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the packages of poetry.lock as pip requirements.")
    parser.add_argument("lock", type=Path, help="path of poetry.lock")
    parser.add_argument("--groups", default="main,dev", help="dependency groups, comma-separated (default: main,dev)")
    parser.add_argument("--without-cuda", action="store_true", help="leave out NVIDIA's libraries and triton")
    parser.add_argument("--only", metavar="NAME", help="this package only")
    parser.add_argument("--extras", default="", help="optional extras, comma-separated (default: none)")
    options = parser.parse_args(arguments)
    try:
        packages = read_packages(options.lock)
        groups, extras = options.groups.split(","), [name for name in options.extras.split(",") if name]
        known = sorted({name for package in packages for name in extras_of(package)})
        if unknown := sorted(set(extras) - set(known)):
            raise LockError(f"{options.lock} has no extra {', '.join(unknown)}; choose from {', '.join(known) or '-'}")
        lines = list(requirement_lines(packages, groups, not options.without_cuda, options.only, extras))
        if not lines:
            raise LockError(f"{options.lock} has no package for groups={options.groups} only={options.only}")
    except LockError as error:
        print(f"lock_constraints: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
