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
  OPENAI_PORT    port of OpenAI's API at /v1 (9000; off leaves it out)
  TRITON_API_KEY key that clients of OpenAI's API need (none)
  MODELS         models to serve, separated by commas (all that this machine can serve)
  IMAGE          image for Docker (triton; built when missing)
  RUNNER         docker or embedded (docker when its engine answers)
  HF_ENDPOINT    a mirror of the Hugging Face Hub

Returns 0 after Ctrl-C, 70 when the engine of a model has ended (embedded), else what Triton returns.
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
        value=$(sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1)
        value=${value%"${value##*[![:space:]]}"}
        if [[ $value == \"*\" || $value == \'*\' ]]; then value=${value:1:-1}; fi
    fi
    printf '%s' "${value:-$2}"
}

parameter() { # MODEL NAME: a string parameter of its config.pbtxt
    awk -v name="\"$2\"" '
        $1 == "key:" { found = ($2 == name) }
        found && $1 == "string_value:" { gsub(/"/, "", $2); print $2; exit }
    ' "model_repository/$1/config.pbtxt"
}

engine_answers() { docker info >/dev/null 2>&1; }

has_gpu() { [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]]; }

hub_answers() {
    local endpoint
    endpoint=$(setting HF_ENDPOINT https://huggingface.co)
    curl --silent --output /dev/null --max-time 8 "$endpoint"
}

# Whether a server finds a snapshot without the Hub; a container does not see this machine's cache.
cached() { # RUNNER, REPOSITORY
    local home=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    [[ $1 == embedded ]] &&
        compgen -G "$home/hub/models--${2//\//--}/snapshots/*/*.safetensors" >/dev/null
}

choose_runner() {
    local runner
    runner=$(setting RUNNER '')
    case $runner in
    docker)
        command -v docker >/dev/null ||
            fail "RUNNER=docker, and there is no docker here; install it, or set RUNNER=embedded"
        engine_answers ||
            fail "RUNNER=docker, and its engine does not answer ('docker info' says why);" \
                "start it, or set RUNNER=embedded"
        ;;
    embedded) ;;
    '') if engine_answers; then runner=docker; else runner=embedded; fi ;;
    *) fail "RUNNER must be docker or embedded, not '$runner'" ;;
    esac
    printf '%s' "$runner"
}

# Prints why models compute on the CPU; nothing where they get the GPUs.
reason_for_cpu() { # RUNNER
    if ! has_gpu; then
        echo "nvidia-smi finds no NVIDIA GPU here"
    elif [[ $1 == docker && $(docker info --format '{{json .Runtimes}}') != *nvidia* ]]; then
        echo "Docker has no NVIDIA runtime, so no GPU reaches a container; the NVIDIA Container" \
            "Toolkit brings it"
    fi
}

# Prints the models to serve; says on stderr which are left out and why.
choose_models() { # RUNNER, REASON FOR THE CPU
    local model device repository hub=unknown
    for folder in model_repository/*/config.pbtxt; do
        model=$(basename "$(dirname "$folder")")
        device=$(parameter "$model" device)
        repository=$(parameter "$model" repo_id)
        if [[ $device == cuda && -n $2 ]]; then
            say "leaving out $model: it needs an NVIDIA GPU"
            continue
        fi
        if [[ $(parameter "$model" gated) == true && -z $(setting HF_TOKEN '') ]]; then
            say "leaving out $model: $repository is gated; put HF_TOKEN=... into .env"
            continue
        fi
        if [[ -n $repository && $hub == unknown ]]; then
            if hub_answers; then hub=yes; else hub=no; fi
        fi
        if [[ -n $repository && $hub == no ]] && ! cached "$1" "$repository"; then
            say "leaving out $model: the Hub cannot be reached and $repository is not in the" \
                "cache of the server; HF_ENDPOINT=... names a mirror"
            continue
        fi
        printf '%s\n' "$model"
    done
}

check_models() { # REASON FOR THE CPU, MODEL...
    local model reason=$1
    shift
    for model in "$@"; do
        [[ -f model_repository/$model/config.pbtxt ]] ||
            fail "there is no model '$model' in model_repository/; there are:" \
                "$(cd model_repository && echo */ | tr -d /)"
        if [[ $(parameter "$model" device) == cuda && -n $reason ]]; then
            fail "$model needs an NVIDIA GPU: $reason"
        fi
        if [[ $(parameter "$model" gated) == true && -z $(setting HF_TOKEN '') ]]; then
            fail "$model needs a token: copy .env.example to .env and set HF_TOKEN"
        fi
    done
}

in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; } # PORT

check_port() { # PORT VARIABLE EXAMPLE
    [[ $1 =~ ^[1-9][0-9]{0,4}$ && $1 -le 65535 ]] || fail "$2 must be 1 to 65535, not '$1'"
    if in_use "$1"; then
        fail "port $1 is in use; stop what listens there or set $2, for example $2=$3 $0"
    fi
}

# Prints the port of OpenAI's API; nothing when it is left out.
choose_openai_port() { # PORT OF TRITON
    local port
    port=$(setting OPENAI_PORT '')
    case $port in
    off) return ;;
    '')
        # Nobody asked for it, so a port that is taken does not keep Triton from starting.
        if in_use 9000 || [[ $1 == 9000 ]]; then
            say "leaving out OpenAI's API: port 9000 is in use; OPENAI_PORT=... names another"
            return
        fi
        port=9000
        ;;
    "$1") fail "OPENAI_PORT and PORT are both $1; they must differ" ;;
    *) check_port "$port" OPENAI_PORT 9001 ;;
    esac
    printf '%s' "$port"
}

export_setting() { # NAME
    local value
    value=$(setting "$1" '')
    if [[ -n $value ]]; then export "$1=$value"; else unset "$1"; fi
}

check_privilege() { # PORT: the embedded server binds the port itself
    local first
    first=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start 2>/dev/null || echo 1024)
    if [[ $1 -lt $first && $EUID -ne 0 ]]; then
        fail "port $1 needs root; run with sudo or set PORT, for example PORT=8080 $0"
    fi
}

run_docker() { # PORT PORT OF OPENAI'S API, REASON FOR THE CPU, MODEL...
    local port=$1 openai=$2 reason=$3 image gpus=() arguments=(--model-repository=model_repository)
    shift 3
    image=$(setting IMAGE triton)
    [[ -n $reason ]] || gpus=(--gpus all)
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        say "image '$image' is missing: building it"
        if [[ -z $reason ]]; then
            DOCKER_BUILDKIT=1 docker build -t "$image" .
        else
            python3 -m tools.image_build --tag "$image"
        fi
    fi
    # All models need no flag; fewer are named one by one.
    if [[ $# -lt $(find model_repository -name config.pbtxt | wc -l) ]]; then
        arguments+=(--model-control-mode=explicit "${@/#/--load-model=}")
    fi
    # By name, because Docker keeps the quotes of a value in an env file.
    local environment=() terminal=() name
    [[ -f .env ]] && environment=(--env-file ./.env)
    for name in HF_TOKEN HF_ENDPOINT TRITON_API_KEY; do
        export_setting "$name"
        [[ -z ${!name-} ]] || environment+=(--env "$name")
    done
    # OPENAI_PORT in .env is that of this machine.
    [[ -z $openai ]] || environment+=(--env OPENAI_PORT=9000)
    [[ -t 0 ]] && terminal=(-t)
    # A new container finds the weights that an earlier one downloaded.
    local volumes=(-v "${PWD}/model_repository:/opt/tritonserver/model_repository") kept
    kept=$(setting DOWNLOADS_VOLUME triton-downloads)
    if [[ $kept != off ]]; then
        volumes+=(-v "$kept:/var/cache/huggingface")
        environment+=(--env HF_HOME=/var/cache/huggingface)
    fi
    say "Docker on http://localhost:$port, models: $*"
    [[ -z $openai ]] || say "OpenAI's API on http://localhost:$openai/v1"
    exec docker run "${gpus[@]}" -i "${terminal[@]}" --rm --shm-size=1G --ulimit memlock=-1 \
        --ulimit stack=67108864 "${environment[@]}" \
        "${volumes[@]}" -p "$port:8000" ${openai:+-p "$openai:9000"} "$image" tritonserver "${arguments[@]}"
}

run_embedded() { # PORT PORT OF OPENAI'S API, REASON FOR THE CPU, MODEL...
    local port=$1 openai=$2 name
    shift 3
    check_privilege "$port"
    [[ -x .venv/bin/python ]] || make --no-print-directory venv
    for name in HF_TOKEN HF_ENDPOINT TRITON_API_KEY; do export_setting "$name"; done
    say "embedded Triton on http://localhost:$port, models: $*"
    PYTHONPATH=image exec .venv/bin/python -m embedded_triton.serve --port "$port" \
        ${openai:+--openai-port "$openai"} --model-repository model_repository "$@"
}

main() {
    if [[ $# -gt 0 ]]; then
        usage
        [[ $1 == -h || $1 == --help ]]
        exit
    fi
    cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
    local port openai runner reason wanted models=()
    port=$(setting PORT 80)
    check_port "$port" PORT 8080
    openai=$(choose_openai_port "$port")
    runner=$(choose_runner)
    reason=$(reason_for_cpu "$runner")
    if [[ $runner == embedded && -z $(setting RUNNER '') ]]; then
        say "no Docker engine answers: taking the embedded Triton"
    fi
    say "models compute on ${reason:+the CPU: }${reason:-the NVIDIA GPUs of this machine}"
    wanted=$(setting MODELS '')
    if [[ -n $wanted ]]; then
        IFS=', ' read -r -a models <<<"$wanted"
        check_models "$reason" "${models[@]}"
    else
        mapfile -t models < <(choose_models "$runner" "$reason")
    fi
    [[ ${#models[@]} -gt 0 ]] || fail "there is no model that this machine can serve"
    "run_$runner" "$port" "$openai" "$reason" "${models[@]}"
}

main "$@"
