#!/usr/bin/env bash
# Serves exported students over HTTP, on this machine.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.serve "$@"
