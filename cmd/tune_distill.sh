#!/usr/bin/env bash
# The main job: data, baseline, teacher, then the search over the distillation's settings.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.tune_distill "$@"
