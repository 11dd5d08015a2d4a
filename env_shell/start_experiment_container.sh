#!/usr/bin/env bash
# Builds the experiment image if it is missing, then runs it with the checkout mounted, or joins it if it runs already.
set -euo pipefail

readonly IMAGE=anyo-ilora-dllm2rec:latest
readonly NAME=anyo-experiment
readonly MPS=/tmp/nvidia-mps # in the container

usage() {
    cat <<'USAGE'
Usage: env_shell/start_experiment_container.sh [options] [-- COMMAND [ARGUMENT...]]

Opens a shell in the experiment container (or runs COMMAND there). Inside: poetry install, then
poetry run python -m src.exp.tune_distill ...   The checkout is /workspace; files written there belong to you.
If the container runs already, the shell opens in it.

Options:
  --detach               start it in the background; without COMMAND it stays up until: docker stop anyo-experiment
  --join                 only join a running container; an error if there is none
  --rebuild              build the image anew, with the newest base image of its tag
  --no-gpu               start without GPUs (the default is all of them)
  --mps                  start NVIDIA's MPS daemon in it: trials that share a GPU then compute at the same time
                         instead of in turns; it ends with the container
  --volume HOST:PATH[:ro]  mount another folder of the host, e.g. data outside the checkout (may be repeated)
  -h, --help             this text

Published to this machine only:  Ray dashboard http://127.0.0.1:8265   TensorBoard http://127.0.0.1:6006
Kept in a named volume:          the container's Python environment and home (anyo-experiment-home-<your user id>)

Environment variables (all optional):
  HF_TOKEN, HF_HOME      the Hugging Face token, passed on; its cache (default: ~/.cache/huggingface), mounted
  ANYO_SHM_SIZE          shared memory for Ray's object store (default: half of the memory)
  ANYO_DASHBOARD_PORT    port of this machine for the Ray dashboard (default: 8265)
  ANYO_TENSORBOARD_PORT  port of this machine for TensorBoard (default: 6006)
USAGE
}

say() { printf 'start_experiment_container: %s\n' "$*" >&2; }
die() {
    printf 'start_experiment_container: error: %s\n' "$*" >&2
    exit 1
}

parse() {
    detach=no join=no rebuild=no gpus=all mps=no
    volumes=() command=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --detach) detach=yes ;;
            --join) join=yes ;;
            --rebuild) rebuild=yes ;;
            --no-gpu) gpus=none ;;
            --mps) mps=yes ;;
            --volume)
                [[ "${2:-}" == *:* ]] || die "--volume needs HOST:PATH, got '${2:-}'"
                volumes+=(--volume "$2")
                shift
                ;;
            -h | --help) usage && exit 0 ;;
            --)
                shift
                command=("$@")
                break
                ;;
            *) usage >&2 && die "unknown argument '$1'" ;;
        esac
        shift
    done
    [ "$gpus$mps" != noneyes ] || die "--mps shares a GPU and --no-gpu starts without one; give one of them"
    [ "$join$mps" != yesyes ] || die "--mps belongs to the start of a container, not to --join"
    [ "$detach$join" != yesyes ] || die "--detach starts a container and --join enters one; give one of them"
}

check_docker() {
    command -v docker >/dev/null || die "docker is not installed; see https://docs.docker.com/engine/install/"
    docker info >/dev/null 2>&1 ||
        die "the docker daemon does not answer; start it (sudo systemctl start docker), or join the docker group"
}

state() { docker container inspect --format '{{.State.Status}}' "$NAME" 2>/dev/null || true; }

# A terminal only where there is one, so that the script works in cron, CI and pipes too.
terminal() { if [ -t 0 ] && [ -t 1 ]; then echo --interactive --tty; else echo --interactive; fi; }

join_container() {
    local checkout
    checkout=$(docker container inspect --format '{{index .Config.Labels "anyo.checkout"}}' "$NAME" 2>/dev/null || true)
    if [ -n "$checkout" ] && [ "$checkout" != "$root" ]; then
        die "$NAME runs on another checkout, $checkout; stop it first: docker stop $NAME"
    fi
    say "joining the running container $NAME"
    # shellcheck disable=SC2046 # one or two words, meant to be split
    exec docker exec $(terminal) --workdir /workspace "$NAME" ${command[@]+"${command[@]}"}
}

build_image() {
    if [ "$rebuild" = yes ]; then
        docker build --pull --no-cache --tag "$IMAGE" --file "$root/Dockerfile" "$root" || die "docker build failed"
    elif ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
        say "building the image $IMAGE (once; the base image is several GB)"
        docker build --tag "$IMAGE" --file "$root/Dockerfile" "$root" || die "docker build failed"
    fi
}

# A limit, not a reservation. Ray's object store wants 30 % of the memory and falls back to disk where this is less.
shm_size() {
    if [ -n "${ANYO_SHM_SIZE:-}" ]; then
        echo "$ANYO_SHM_SIZE"
    elif [ -r /proc/meminfo ]; then
        awk '/^MemTotal:/ { printf "%dk\n", $2 / 2 }' /proc/meminfo
    else
        echo 16g
    fi
}

# Files must belong to the caller. In rootless docker the caller is the container's root.
container_user() {
    case "$(docker info --format '{{.SecurityOptions}}' 2>/dev/null)" in
        *rootless*) echo 0:0 ;;
        *) echo "$(id -u):$(id -g)" ;;
    esac
}

run_container() {
    local cache user arguments start
    cache=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    mkdir -p "$cache" || die "HF_HOME=$cache cannot be created" # docker would create it for root
    cache=$(cd "$cache" && pwd)
    user=$(id -un 2>/dev/null || id -u)
    arguments=(
        --rm --init --name "$NAME" --hostname "$NAME" --label "anyo.checkout=$root"
        --user "$(container_user)" --env "USER=$user" --env "LOGNAME=$user" # no passwd entry: getpass needs these
        --volume "$root:/workspace" --workdir /workspace
        --volume "$NAME-home-$(id -u):/home/anyo"
        --volume "$cache:/hf-cache"
        --shm-size "$(shm_size)"
        --publish "127.0.0.1:${ANYO_DASHBOARD_PORT:-8265}:8265"
        --publish "127.0.0.1:${ANYO_TENSORBOARD_PORT:-6006}:6006"
    )
    [ "$gpus" = none ] || arguments+=(--gpus "$gpus")
    [ -z "${HF_TOKEN:-}" ] || arguments+=(--env HF_TOKEN) # by name: the token is in no command line
    arguments+=(${volumes[@]+"${volumes[@]}"})
    [ "$detach" = no ] || [ ${#command[@]} -gt 0 ] || command=(sleep infinity)
    if [ "$mps" = yes ]; then
        # named here, so that every shell that joins finds the daemon too
        arguments+=(--env "CUDA_MPS_PIPE_DIRECTORY=$MPS" --env "CUDA_MPS_LOG_DIRECTORY=$MPS/log")
        # shellcheck disable=SC2016 # expanded in the container
        start='mkdir -p "$CUDA_MPS_LOG_DIRECTORY" && nvidia-cuda-mps-control -d'
        start="if ! { $start; }; then echo 'MPS did not start: trials take turns on the GPU' >&2; fi"
        command=(bash -c "$start; exec \"\$@\"" mps "${command[@]}")
    fi
    if [ "$detach" = yes ]; then
        docker run --detach "${arguments[@]}" "$IMAGE" "${command[@]}" >/dev/null || explain_failure $?
        say "$NAME runs in the background"
        say "enter it: $0 --join   watch it: docker logs -f $NAME   end it: docker stop $NAME"
    else
        # shellcheck disable=SC2046 # one or two words, meant to be split
        docker run $(terminal) "${arguments[@]}" "$IMAGE" ${command[@]+"${command[@]}"} || explain_failure $?
    fi
}

# 125: docker itself failed. Any other code comes from the command in the container.
explain_failure() {
    if [ "$1" = 125 ]; then
        say "docker could not start the container; see its message above"
        [ "$gpus" = none ] || say "GPUs need the NVIDIA driver and NVIDIA Container Toolkit; without GPUs: --no-gpu"
        say "a port in use: set ANYO_DASHBOARD_PORT or ANYO_TENSORBOARD_PORT"
    fi
    exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
parse "$@"
check_docker
[ ${#command[@]} -gt 0 ] || [ "$detach" = yes ] || command=(bash)

case "$(state)" in
    running)
        [ "$detach" = no ] || die "$NAME runs already; enter it: $0 --join"
        [ "$mps" = no ] || say "the running container keeps its processes; for --mps, first: docker stop $NAME"
        [ "$rebuild" = no ] || say "the running container keeps its image; for --rebuild, first: docker stop $NAME"
        join_container
        ;;
    "") ;;
    *) die "a container $NAME exists but does not run; remove it: docker rm $NAME" ;;
esac
[ "$join" = no ] || die "$NAME does not run; start it without --join"
build_image
run_container
