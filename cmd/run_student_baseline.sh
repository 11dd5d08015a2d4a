#!/usr/bin/env bash
# Trains and evaluates the student without a teacher.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.run_student_baseline "$@"
