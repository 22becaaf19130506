#!/usr/bin/env bash
# Serves the models of model_repository/ on this machine: with Docker when its engine answers,
# else with the embedded Triton from PyPI. Ctrl-C stops it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./run_server.sh

Serves model_repository/ on http://localhost:80. Variables, here or in .env:
  HF_TOKEN       token for gated models
  PORT           port on this machine (80)
  MODELS         models to serve, separated by commas (all that this machine can serve)
  IMAGE          image for Docker (triton; built when missing)
  RUNNER         docker or embedded (docker when its engine answers)
  HF_ENDPOINT    a mirror of the Hugging Face Hub
TEXT
}

say() { printf 'run_server: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Values of .env count less than those of the environment, as with docker run.
setting() { # NAME DEFAULT
    local value=${!1-}
    if [[ -z $value && -f .env ]]; then
        value=$(sed -n "s/^$1=//p" .env | tail -n 1)
    fi
    printf '%s' "${value:-$2}"
}

parameter() { # MODEL NAME: a string parameter of its config.pbtxt
    awk -v name="\"$2\"" '
        $1 == "key:" { found = ($2 == name) }
        found && $1 == "string_value:" { gsub(/"/, "", $2); print $2; exit }
    ' "model_repository/$1/config.pbtxt"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

hub_answers() {
    local endpoint
    endpoint=$(setting HF_ENDPOINT https://huggingface.co)
    curl --silent --output /dev/null --max-time 8 "$endpoint"
}

cached() { # REPOSITORY: whether the Hub's own cache holds a snapshot of it
    local home=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    compgen -G "$home/hub/models--${1//\//--}/snapshots/*/*.safetensors" >/dev/null
}

# Prints the models to serve; says on stderr which are left out and why.
choose_models() {
    local model device repository gpu=no hub=unknown
    has_gpu && gpu=yes
    for folder in model_repository/*/config.pbtxt; do
        model=$(basename "$(dirname "$folder")")
        device=$(parameter "$model" device)
        repository=$(parameter "$model" repo_id)
        if [[ $device == cuda && $gpu == no ]]; then
            say "leaving out $model: it needs an NVIDIA GPU, and there is none here"
            continue
        fi
        if [[ $(parameter "$model" gated) == true && -z $(setting HF_TOKEN '') ]]; then
            say "leaving out $model: $repository is gated; put HF_TOKEN=... into .env"
            continue
        fi
        if [[ -n $repository && $hub == unknown ]]; then
            if hub_answers; then hub=yes; else hub=no; fi
        fi
        if [[ -n $repository && $hub == no ]] && ! cached "$repository"; then
            say "leaving out $model: the Hub cannot be reached and $repository is not on this" \
                "machine; HF_ENDPOINT=... names a mirror"
            continue
        fi
        printf '%s\n' "$model"
    done
}

check_models() { # MODEL...
    local model
    for model in "$@"; do
        [[ -f model_repository/$model/config.pbtxt ]] ||
            fail "there is no model '$model' in model_repository/; there are: $(cd model_repository && echo *)"
        if [[ $(parameter "$model" gated) == true && -z $(setting HF_TOKEN '') ]]; then
            fail "$model needs a token: copy .env.example to .env and set HF_TOKEN"
        fi
    done
}

check_port() { # PORT
    [[ $1 =~ ^[0-9]+$ && $1 -ge 1 && $1 -le 65535 ]] || fail "PORT must be 1 to 65535, not '$1'"
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
        fail "port $1 is in use; stop what listens there or set PORT, for example PORT=8080 $0"
    fi
}

check_privilege() { # PORT: the embedded server binds the port itself
    local first
    first=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start 2>/dev/null || echo 1024)
    if [[ $1 -lt $first && $EUID -ne 0 ]]; then
        fail "port $1 needs root; run with sudo or set PORT, for example PORT=8080 $0"
    fi
}

run_docker() { # PORT MODEL...
    local port=$1 image gpus=() arguments=(--model-repository=model_repository)
    shift
    image=$(setting IMAGE triton)
    if docker info --format '{{json .Runtimes}}' | grep -q nvidia && has_gpu; then
        gpus=(--gpus all)
    fi
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        say "image '$image' is missing: building it (docker build -t $image .)"
        if [[ ${#gpus[@]} -gt 0 ]]; then
            docker build -t "$image" .
        else
            python3 image/build.py --tag "$image"
        fi
    fi
    # All models need no flag; fewer are named one by one.
    if [[ $# -lt $(find model_repository -name config.pbtxt | wc -l) ]]; then
        arguments+=(--model-control-mode=explicit "${@/#/--load-model=}")
    fi
    local environment=() terminal=()
    [[ -f .env ]] && environment=(--env-file ./.env)
    for name in HF_TOKEN HF_ENDPOINT; do
        [[ -n ${!name-} ]] && environment+=(--env "$name")
    done
    [[ -t 0 ]] && terminal=(-t)
    say "Docker${gpus[0]:+ with all GPUs}: http://localhost:$port, models: $*"
    exec docker run "${gpus[@]}" -i "${terminal[@]}" --rm --shm-size=1G --ulimit memlock=-1 \
        --ulimit stack=67108864 "${environment[@]}" \
        -v "${PWD}/model_repository:/opt/tritonserver/model_repository" \
        -p "$port:8000" "$image" tritonserver "${arguments[@]}"
}

run_embedded() { # PORT MODEL...
    local port=$1
    shift
    check_privilege "$port"
    [[ -x .venv/bin/python ]] || make --no-print-directory venv
    for name in HF_TOKEN HF_ENDPOINT; do
        export "$name=$(setting "$name" '')"
        [[ -n ${!name} ]] || unset "$name"
    done
    say "no Docker engine: embedded Triton on http://localhost:$port, models: $*"
    PYTHONPATH=image exec .venv/bin/python -m triton_hf.serve --port "$port" \
        --model-repository model_repository "$@"
}

main() {
    if [[ $# -gt 0 ]]; then
        usage
        [[ $1 == -h || $1 == --help ]]
        exit
    fi
    cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
    local port runner wanted models=()
    port=$(setting PORT 80)
    runner=$(setting RUNNER '')
    wanted=$(setting MODELS '')
    check_port "$port"
    if [[ -n $wanted ]]; then
        IFS=', ' read -r -a models <<<"$wanted"
        check_models "${models[@]}"
    else
        mapfile -t models < <(choose_models)
    fi
    [[ ${#models[@]} -gt 0 ]] || fail "there is no model that this machine can serve"
    if [[ -z $runner ]]; then
        runner=embedded
        if docker info >/dev/null 2>&1; then runner=docker; fi
    fi
    case $runner in
    docker | embedded) "run_$runner" "$port" "${models[@]}" ;;
    *) fail "RUNNER must be docker or embedded, not '$runner'" ;;
    esac
}

main "$@"
