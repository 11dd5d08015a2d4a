#!/usr/bin/env bash
# Builds the environment, then runs the main job on the embedded sample. Arguments are Hydra overrides (name=value).
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

./env_shell/setup_env.sh
anyo_python -m src.exp.tune_distill dataset=sample "$@"
