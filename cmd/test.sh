#!/usr/bin/env bash
# Everything that CI checks: environment, lint, format, types, the arrows between the rooms, shell scripts, tests.
# All of them run even if one fails; the exit code is 0 only if all passed. Arguments go to pytest (a path, -k, ...).
#   --all               also the tests marked `nightly`: every kill of a real search, every arm of the fair protocol
#   ANYO_TEST_WORKERS   parallel test processes (default: 2; 0 runs the tests in this process, e.g. for --pdb)
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

selected="not network and not nightly"
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            printf 'Usage: cmd/test.sh [--all] [arguments of pytest]      (a path, -k NAME, ...)\n'
            printf 'Checks everything that CI checks: environment, lint, format, types, imports, shell scripts, tests.\n'
            printf -- '--all runs the nightly tests too: every kill of a real search, every arm of the fair protocol.\n'
            printf 'ANYO_TEST_WORKERS=N runs the tests in N processes (default: 2; 0: in this one, for --pdb).\n'
            exit 0
            ;;
        --all) selected="not network" ;;
        *) arguments+=("$argument") ;;
    esac
done

./env_shell/setup_env.sh

notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT
names=()
check() { # check NAME COMMAND...: beside the other checks and the tests; its output is shown only if it fails
    local name=$1
    shift
    names+=("$name")
    { "$@" >"$notes/$name.output" 2>&1 && touch "$notes/$name.passed"; } &
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

# One thread a process: the test processes share the cores. Nothing may be downloaded.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
workers=${ANYO_TEST_WORKERS:-2}
parallel=(-n "$workers" --dist loadfile --no-loadscope-reorder) # in the order of tests/conftest.py
[ "$workers" != 0 ] || parallel=(-p no:xdist)

failed=()
run_tests() {
    anyo_python -m pytest -q -m "$selected" "${parallel[@]}" ${arguments[@]+"${arguments[@]}"}
}
if [ "$workers" = 0 ]; then
    run_tests || failed+=(pytest)
else
    # its summary is shown again as the last line, beneath the other checks
    run_tests 2>&1 | tee "$notes/pytest" || failed+=(pytest)
fi

wait
for name in "${names[@]}"; do
    if [ -e "$notes/$name.passed" ]; then
        printf 'ok      %s\n' "$name"
    else
        failed+=("$name")
        printf '%s\nFAILED  %s\n' "$(cat "$notes/$name.output")" "$name"
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[*]}"
fi
[ ! -e "$notes/pytest" ] || tail -n 1 "$notes/pytest"

[ ${#failed[@]} -eq 0 ] # the exit code covers every check
