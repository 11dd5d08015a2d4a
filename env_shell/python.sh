# Sourced by cmd/*.sh, never run: goes to the repository's root and defines `anyo_python`, the project's interpreter.
# shellcheck shell=bash
set -euo pipefail

ANYO_CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "$ANYO_CALLER" != "$PWD" ]; then
    printf 'note: relative paths are taken from %s\n' "$PWD" >&2
fi

anyo_python() {
    if [ "${ANYO_IN_CONTAINER:-}" = 1 ] || [ "${POETRY_VIRTUALENVS_CREATE:-}" = false ]; then
        poetry run python "$@"
    elif [ -x .venv/bin/python ]; then
        .venv/bin/python "$@"
    else
        printf 'error: there is no .venv yet; build it with: %s/env_shell/setup_env.sh\n' "$PWD" >&2
        return 1
    fi
}
