#!/usr/bin/env bash
# Evaluates the students and teachers of given result folders side by side.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.run_eval_all "$@"
