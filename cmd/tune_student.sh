#!/usr/bin/env bash
# Searches the student's own settings with Optuna through Ray Tune.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.tune_student "$@"
