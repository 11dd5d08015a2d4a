"""What import-linter (pyproject.toml) cannot see: its own completeness, and imports without the heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
HEAVY = ["hydra", "omegaconf", "ray", "optuna", "transformers", "peft", "tokenizers"]


def modules(*rooms: str) -> list[str]:
    files = [file for room in rooms for file in sorted((ROOT / "src" / room).rglob("*.py"))]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def import_without(blocked: list[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which `blocked` cannot be imported."""
    program = (
        f"import sys, importlib\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_core_data_and_student_import_with_none_of_the_heavy_packages() -> None:
    names = modules("core", "data", "student")
    assert len(names) > 10
    done = import_without(HEAVY, names)
    assert done.returncode == 0, done.stderr


def test_run_entry_points_import_without_ray_and_optuna() -> None:
    names = [name for name in modules("exp") if ".run_" in name]
    assert len(names) == 4
    done = import_without(["ray", "optuna", "src.tuning"], names)
    assert done.returncode == 0, done.stderr


def test_a_worker_that_trains_students_loads_no_language_model() -> None:
    done = import_without(["transformers", "peft", "tokenizers"], ["src.tuning.trainable"])
    assert done.returncode == 0, done.stderr


def test_a_run_without_a_teacher_loads_no_language_model() -> None:
    names = ["src.exp.run_student_baseline", "src.pipeline.preflight", "src.pipeline.runs"]
    done = import_without(["transformers", "peft", "tokenizers"], names)
    assert done.returncode == 0, done.stderr


def test_command_lines_need_no_torch() -> None:
    commands = [name for name in modules("exp") if ".exp.run_" in name or ".tune_" in name]
    assert len(commands) == 7
    shared = modules("cli", "config")
    assert len(shared) >= 10
    blocked = ["torch", "numpy", "pandas", *set(HEAVY) - {"hydra", "omegaconf"}]
    done = import_without(blocked, [*commands, *shared])
    assert done.returncode == 0, done.stderr


def test_settings_need_no_language_model_and_no_search() -> None:
    # a student's, a term's and a baseline's settings stand beside what computes with them, which is torch
    rooms = ("core", "data", "student", "teacher", "distill", "pipeline", "tuning")
    names = [name for name in modules(*rooms) if name.endswith("settings")]
    assert len(names) >= 9
    done = import_without(["pandas", *set(HEAVY) - {"hydra", "omegaconf"}], names)
    assert done.returncode == 0, done.stderr


def test_a_blocked_package_would_be_noticed() -> None:
    assert import_without(["torch"], ["src.core.seed"]).returncode != 0


def test_every_run_entry_point_is_under_the_contract() -> None:
    contract = next(contract for contract in CONTRACTS if contract["id"] == "run")
    assert set(contract["source_modules"]) == {name for name in modules("exp") if ".run_" in name}


def test_every_room_is_under_the_contracts_of_what_comes_from_outside() -> None:
    rooms = {f"src.{path.name}" for path in (ROOT / "src").iterdir() if (path / "__init__.py").is_file()}
    covered: dict[str, set[str]] = {}
    for contract in CONTRACTS:
        for outside in contract.get("forbidden_modules", []):
            covered.setdefault(outside, set()).update(contract["source_modules"])
    assert rooms - covered["hydra"] == rooms - covered["omegaconf"] == {"src.config"}
    assert rooms - covered["ray"] == rooms - covered["optuna"] == {"src.tuning"}
    for outside in ("transformers", "peft", "tokenizers"):
        assert rooms - covered[outside] == {"src.teacher"}


def back_doors(file: Path) -> list[str]:
    """Name what a module must not contain: wildcards, sys.path, ref_repositories, a file name without a subject."""
    found = ["a name without a subject"] if file.stem in {"utils", "common", "helpers", "misc"} else []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [alias.name for alias in node.names]
            origins = imported if isinstance(node, ast.Import) else [node.module or ""]
            if "*" in imported:
                found.append(f"line {node.lineno}: wildcard import")
            if any(origin.split(".")[0] == "ref_repositories" for origin in origins):
                found.append(f"line {node.lineno}: import of ref_repositories")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            found.append(f"line {node.lineno}: sys.path")
    return found


def test_modules_have_a_subject_and_no_back_doors() -> None:
    files = sorted((ROOT / "src").rglob("*.py"))
    assert len(files) > 20
    assert {str(file.relative_to(ROOT)): found for file in files if (found := back_doors(file))} == {}


def test_back_doors_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "utils.py"
    file.write_text("import sys\nfrom os import *\nimport ref_repositories.ilora\nsys.path.append('x')\n")
    assert back_doors(file) == [
        "a name without a subject",
        "line 2: wildcard import",
        "line 3: import of ref_repositories",
        "line 4: sys.path",
    ]


def test_a_command_only_names_what_it_runs() -> None:
    files = sorted((ROOT / "src" / "exp").glob("*.py"))
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert max(lines.values()) <= 60, lines  # what evaluates, publishes or compares moves below
    assert sum(lines.values()) <= 600, lines
