#!/usr/bin/env bash
# Trains the teacher (iLoRA) and writes its outputs for distillation.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.run_teacher "$@"
