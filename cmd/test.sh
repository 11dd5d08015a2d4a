#!/usr/bin/env bash
# Everything that CI checks: environment, lint, format, types, the arrows between the rooms, shell scripts, tests.
# All of them run even if one fails; the exit code is 0 only if all passed. Arguments go to pytest (a path, -k, ...).
#   ANYO_TEST_WORKERS   parallel test processes (default: 2; 0 runs the tests in this process, e.g. for --pdb)
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

for argument in "$@"; do
    case "$argument" in
        -h | --help)
            printf 'Usage: cmd/test.sh [arguments of pytest]      (a path, -k NAME, ...)\n'
            printf 'Checks everything that CI checks: environment, lint, format, types, imports, shell scripts, tests.\n'
            printf 'ANYO_TEST_WORKERS=N runs the tests in N processes (default: 2; 0: in this one, for --pdb).\n'
            exit 0
            ;;
    esac
done

./env_shell/setup_env.sh

failed=()
check() { # check NAME COMMAND...: its output is shown only if it fails
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf 'ok      %s\n' "$name"
    else
        failed+=("$name")
        printf '%s\nFAILED  %s\n' "$output" "$name"
    fi
}

check "ruff check" anyo_python -m ruff check .
check "ruff format" anyo_python -m ruff format --check .
check "mypy" anyo_python -m mypy
check "import-linter" anyo_python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
if command -v shellcheck >/dev/null; then
    check "shellcheck" shellcheck --external-sources --source-path=SCRIPTDIR cmd/*.sh env_shell/*.sh .ci/run
else
    printf 'skipped shellcheck (not installed)\n'
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED before the tests: %s\n' "${failed[*]}"
fi

# One thread a process: the test processes share the cores. Nothing may be downloaded.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
workers=${ANYO_TEST_WORKERS:-2}
parallel=(-n "$workers" --dist loadfile --no-loadscope-reorder) # in the order of tests/conftest.py
[ "$workers" != 0 ] || parallel=(-p no:xdist)
anyo_python -m pytest -q -m "not network" "${parallel[@]}" "$@" || failed+=(pytest)

[ ${#failed[@]} -eq 0 ] # pytest's own summary stays the last line; the exit code covers every check
