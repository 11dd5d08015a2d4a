#!/usr/bin/env bash
# Builds the environment, then runs the main job on the embedded sample. Arguments are Hydra overrides (name=value).
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

for argument in "$@"; do
    case "$argument" in
        -h | --help)
            printf 'Usage: cmd/quickstart.sh [name=value ...]\n'
            printf 'Builds the environment (.venv), then runs the main job on the embedded sample.\n'
            printf 'Once it is built, cmd/tune_distill.sh --help lists every name.\n'
            exit 0
            ;;
    esac
done

./env_shell/setup_env.sh
anyo_python -m src.exp.tune_distill dataset=sample "$@"
