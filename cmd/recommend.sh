#!/usr/bin/env bash
# Recommends for a whole file of histories.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.recommend "$@"
