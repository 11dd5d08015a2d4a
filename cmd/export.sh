#!/usr/bin/env bash
# Exports the student of a finished result as ONNX, with its id map and model card.
# Arguments are Hydra overrides (name=value); --help lists them.
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

anyo_python -m src.exp.export "$@"
