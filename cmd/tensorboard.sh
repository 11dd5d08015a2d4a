#!/usr/bin/env bash
# Opens TensorBoard on one result folder, or on all of result/:  cmd/tensorboard.sh [RESULT] [TensorBoard's options]
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/python.sh"

case "${1:-}" in
    -h | --help)
        printf 'Usage: cmd/tensorboard.sh [RESULT] [options of TensorBoard]\n'
        printf 'Shows result/ or the folder RESULT at http://127.0.0.1:6006 (other port: --port N).\n'
        exit 0
        ;;
esac

folder=result
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    folder=$1
    [ -d "$folder" ] || folder=$ANYO_CALLER/$1
    if [ ! -d "$folder" ]; then
        printf 'error: RESULT=%s is not a folder; list them with: ls %s/result\n' "$1" "$PWD" >&2
        exit 1
    fi
    shift
    [ ! -d "$folder/tb" ] || folder=$folder/tb # of one result the runs' names alone
fi

host=127.0.0.1
[ "${ANYO_IN_CONTAINER:-}" != 1 ] || host=0.0.0.0 # the container publishes the port to the host's 127.0.0.1 only

anyo_python -m tensorboard.main --logdir "$folder" --host "$host" --port 6006 "$@"
