#!/usr/bin/env bash
# Distils the teacher's outputs into one student, with one setting.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.run_distill "$@"
