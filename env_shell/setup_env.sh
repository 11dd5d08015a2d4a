#!/usr/bin/env bash
# Builds the project's environment from poetry.lock, and does nothing when it is current.
#   in the container:  `poetry install` into the container's own environment (a named volume)
#   elsewhere:         .venv, by pip at the versions of poetry.lock
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: env_shell/setup_env.sh

Builds .venv in the repository's root from poetry.lock; does nothing when .venv is current.
Needs Python 3.11 to 3.14 (with venv) and the package index that pip is configured for.

Environment variables (all optional):
  ANYO_PYTHON       the Python to build .venv with (default: python3, or the first of python3.12, 3.13, 3.11, 3.14)
  ANYO_TORCH        cpu or cuda: which build of torch (default: cuda where nvidia-smi finds a GPU, else cpu)
  ANYO_TORCH_INDEX  an extra index to take torch and its CUDA libraries from, where the driver is too old for the
                    locked build, e.g. https://download.pytorch.org/whl/cu126
  ANYO_EXTRAS       optional packages besides, comma-separated (default: what the environment has). serve: FastAPI and
                    uvicorn, for cmd/serve.sh; quantised: bitsandbytes, for language models in 4 and 8 bits; index:
                    usearch, for recommend with index=usearch
USAGE
}

readonly CPU_INDEX="https://download.pytorch.org/whl/cpu"
readonly LAYOUT=1 # raise it when this script installs differently, so that existing environments are updated

say() { printf 'setup_env: %s\n' "$*"; }
die() {
    printf 'setup_env: error: %s\n' "$*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------------ which Python

# A usable Python really runs (pyenv leaves stubs that do not) and has a supported version.
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; }
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
    local name without_venv=""
    for name in ${ANYO_PYTHON:-python3 python python3.12 python3.13 python3.11 python3.14}; do
        is_supported "$name" || continue
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            python=$name
            return
        fi
        without_venv=${without_venv:-$name}
    done
    [ -z "$without_venv" ] ||
        die "$without_venv cannot make environments (no ensurepip); Debian and Ubuntu: sudo apt install python3-venv"
    die "no Python 3.11 to 3.14 found (python3: $(python3 --version 2>&1 | head -n 1)); install one or set ANYO_PYTHON"
}

# An existing environment keeps its Python, whatever is installed beside it later. One that was left half-built (killed,
# power cut) is not trusted; one that another tool made is completed, never wiped.
can_keep_venv() {
    local wanted=${ANYO_PYTHON:-$venv/bin/python}
    [ ! -e "$unfinished" ] && is_supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        [ "$(python_version "$wanted")" = "$(python_version "$venv/bin/python")" ]
}

# ------------------------------------------------------------------------------------------------ is it current

# An environment with CUDA stays one while the GPU is out of sight: its torch runs on the CPU as well.
choose_torch() {
    accelerator=${ANYO_TORCH:-cpu}
    if [ -z "${ANYO_TORCH:-}" ]; then
        if nvidia-smi -L >/dev/null 2>&1 || [[ "$(cat "$stamp_file" 2>/dev/null)" == *" torch=cuda "* ]]; then
            accelerator=cuda
        fi
    fi
    [[ "$accelerator" =~ ^(cpu|cuda)$ ]] || die "ANYO_TORCH=$accelerator must be cpu or cuda"
}

# What is installed stays: the commands that call this script do not know what somebody asked for once.
choose_extras() {
    extras=${ANYO_EXTRAS-$(sed -n 's/.* extras=\([^ ]*\).*/\1/p' "$stamp_file" 2>/dev/null || true)}
    [[ "$extras" =~ ^[a-z0-9,_-]*$ ]] || die "ANYO_EXTRAS=$extras must be names of extras, separated by commas"
}

stamp() {
    "$venv/bin/python" - "$LAYOUT" "$accelerator" "${ANYO_TORCH_INDEX:-default}" "$extras" <<'PYTHON'
import hashlib
import pathlib
import sys

layout, torch, index, extras = sys.argv[1:]
lock = hashlib.sha256(pathlib.Path("poetry.lock").read_bytes()).hexdigest()[:16]
python = f"{sys.version_info[0]}.{sys.version_info[1]}"
words = [f"layout={layout}", f"lock={lock}", f"python={python}", f"torch={torch}", f"index={index}"]
print(*words, *([f"extras={extras}"] if extras else []))
PYTHON
}

# ------------------------------------------------------------------------------------------------ installing

quietly() {
    "$@" >>"$log" 2>&1 && return
    [ "$kept" = no ] || rm -f "$unfinished" # pip undid what it could not finish: the next run may build on this one
    printf '%s\n' "--- the end of $log ---" >&2
    tail -n 15 "$log" >&2
    if tail -n 60 "$log" | grep -qiE 'connection|resolve|timed out|proxy|ssl|from versions: none'; then
        die "the package index could not be reached; check the network (or pip's configuration), then run this again"
    fi
    die "the installation failed (see above; in full in $log)"
}

pip_install() { quietly "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@"; }
locked() { "$venv/bin/python" env_shell/lock_constraints.py poetry.lock --extras "$extras" "$@"; }

is_reachable() {
    "$venv/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5).close()' "$1" \
        >/dev/null 2>&1
}

# torch goes first: its build decides whether NVIDIA's libraries (gigabytes) are needed at all. The CPU build's version
# is <locked>+cpu, which pip prefers to <locked>; `===` asks for exactly <locked>, the CUDA build.
install_torch() {
    local torch
    torch=$(locked --only torch) || die "poetry.lock names no torch"
    if [ -n "${ANYO_TORCH_INDEX:-}" ]; then
        say "installing $torch from ANYO_TORCH_INDEX"
        pip_install --upgrade --extra-index-url "$ANYO_TORCH_INDEX" -c "$venv/constraints.txt" "$torch"
    elif [ "$accelerator" = cuda ]; then
        say "installing $torch (CUDA build)"
        pip_install --no-deps "${torch/==/===}"
    elif [ "$(uname -s)" = Linux ] && is_reachable "$CPU_INDEX/torch/"; then
        say "installing $torch (CPU build)"
        pip_install --upgrade --no-deps --extra-index-url "$CPU_INDEX" "$torch"
    else
        say "installing $torch"
        pip_install --upgrade --no-deps "$torch"
    fi
}

torch_needs_cuda() {
    "$venv/bin/python" -c '
import importlib.metadata, sys
needs = importlib.metadata.requires("torch") or []
sys.exit(not any(line.startswith(("nvidia-", "cuda-")) and "extra ==" not in line for line in needs))'
}

install_rest() {
    local cuda=--without-cuda
    if [ -z "${ANYO_TORCH_INDEX:-}" ] && torch_needs_cuda; then
        cuda=""
        [ "$accelerator" = cuda ] || say "no CPU build of torch within reach: its CUDA libraries come too (gigabytes)"
    fi
    locked ${cuda:+"$cuda"} >"$venv/constraints.txt" # kept: `pip install -c .venv/constraints.txt X` disturbs nothing
    grep -v '^torch==' "$venv/constraints.txt" >"$venv/requirements.txt"
    say "installing the other $(grep -c . "$venv/requirements.txt") packages of poetry.lock"
    pip_install --no-deps -r "$venv/requirements.txt" # the lock is complete: pip has nothing left to resolve
    "$venv/bin/python" -m pip check >>"$log" 2>&1 || say "note: pip check names a conflict, see the end of $log"
}

check_torch() {
    local seen
    seen=$("$venv/bin/python" -c 'import torch; print(torch.__version__, torch.cuda.is_available())' 2>>"$log") ||
        die "torch does not start; see the end of $log"
    if [ "$accelerator" = cuda ] && [[ "$seen" == *False ]] && nvidia-smi -L >/dev/null 2>&1; then
        say "warning: torch ${seen% *} sees no GPU; its driver may be too old (see ANYO_TORCH_INDEX in --help)"
    fi
    say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s ($("$venv/bin/python" --version), torch ${seen% *})"
}

build() {
    if [ "$kept" = yes ]; then
        say "bringing $venv up to date with poetry.lock (a few minutes at most, log in $log)"
    else
        find_python
        say "creating $venv with $("$python" --version) for $accelerator (a few minutes, log in $log)"
        "$python" -m venv --clear "$venv" || die "$python -m venv failed"
    fi
    : >"$unfinished"
    : >"$log"
    rm -f "$stamp_file"
    locked --without-cuda >"$venv/constraints.txt" || die "poetry.lock is not usable (ANYO_EXTRAS=$extras)"
    install_torch
    install_rest
    check_torch
    stamp >"$unfinished"
    mv "$unfinished" "$stamp_file" # in one step, at the end: an environment is current or unfinished, nothing between
}

install_in_container() {
    command -v poetry >/dev/null || die "no poetry; on the host: env_shell/start_experiment_container.sh --rebuild"
    say "poetry install (the container's own environment)"
    # an extra that is not asked for would be removed
    local wanted=${ANYO_EXTRAS-}
    if [ -z "${ANYO_EXTRAS+set}" ] && poetry run python -c 'import bitsandbytes' >/dev/null 2>&1; then
        wanted=quantised
    fi
    poetry install --no-interaction --quiet ${wanted:+--extras "${wanted//,/ }"} || die "poetry install failed; run it by hand to see why"
}

# ------------------------------------------------------------------------------------------------ the story

case "${1:-}" in
    "") ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && die "unknown argument '$1'" ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv
stamp_file=$venv/.anyo-stamp
unfinished=$venv/.anyo-unfinished
log=$venv/install.log
[ -f poetry.lock ] || die "poetry.lock is missing in $PWD; restore it with git"

if [ "${ANYO_IN_CONTAINER:-}" = 1 ] || [ "${POETRY_VIRTUALENVS_CREATE:-}" = false ]; then
    install_in_container
    exit 0
fi

if command -v flock >/dev/null; then # of two commands started together the second waits, then finds .venv current
    exec 9>.venv.lock
    flock 9
fi
[ -z "${ANYO_PYTHON:-}" ] || is_supported "$ANYO_PYTHON" ||
    die "ANYO_PYTHON=$ANYO_PYTHON must be a Python 3.11 to 3.14 that runs"
choose_torch
choose_extras
kept=no
if can_keep_venv; then
    kept=yes
    if [ "$(cat "$stamp_file" 2>/dev/null)" = "$(stamp)" ]; then
        say "$venv is current"
        exit 0
    fi
fi
build
