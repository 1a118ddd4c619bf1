#!/usr/bin/env bash
# Create .venv and install the pinned lock into it. Does nothing if it is up to date.
#
#   LORIKEET_DEVICE=cpu|gpu   which lock (default: gpu where nvidia-smi works, else cpu)
#   PYTHON=/path/to/python    which Python: 3.11, 3.12 or 3.13 (default: the first one found, in this order)
#
# `scripts/setup.sh packages` stops after the packages, without our own code: a layer of the Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
STAMP=$VENV/lorikeet-setup.stamp
LOG=$VENV/lorikeet-setup.log
# 3.11 first: all tests run on it, including those with an engine.
SUPPORTED=(3.11 3.12 3.13)

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Print a Python's version, e.g. `3.12`; nothing if it does not run, e.g. a pyenv shim without a selected version.
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# Debian and Ubuntu package these modules separately.
can_make_venv() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null
}

# Print the first Python that can create environments: 3.11 under each of its names, then 3.12, then 3.13.
find_python() {
    local wanted candidate candidates without_venv=
    for wanted in "${SUPPORTED[@]}"; do
        candidates=("python$wanted" "/usr/bin/python$wanted" python3 python)
        [[ -n ${PYTHON:-} ]] && candidates=("$PYTHON")
        for candidate in "${candidates[@]}"; do
            [[ $(version_of "$candidate") == "$wanted" ]] || continue
            if can_make_venv "$candidate"; then
                printf '%s' "$candidate"
                return
            fi
            without_venv=${without_venv:-$wanted}
        done
    done
    [[ -z $without_venv ]] || fail "Python $without_venv lacks its venv module." \
        "On Debian or Ubuntu: apt install python$without_venv-venv"
    fail "Lorikeet needs Python 3.11, 3.12 or 3.13;" \
        "found $("${PYTHON:-python3}" --version 2>/dev/null || echo no Python)." \
        "Install one (apt install python3.11 python3.11-venv, pyenv install 3.11)" \
        "and run: PYTHON=/path/to/python3.11 make setup"
}

# An environment with another Python than the requested one is recreated.
has_wanted_python() {
    [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$(version_of "$VENV/bin/python")" ]]
}

find_device() {
    if [[ -n ${LORIKEET_DEVICE:-} ]]; then
        printf '%s' "$LORIKEET_DEVICE"
    elif nvidia-smi >/dev/null 2>&1; then
        printf gpu
    else
        printf cpu
    fi
}

# Run a command with its output in the log; print its name, and then the seconds it took.
step() {
    local name=$1 started=$SECONDS
    shift
    printf 'setup: %s ... ' "$name"
    if ! "$@" >>"$LOG" 2>&1; then
        printf 'failed\n'
        tail -n 20 "$LOG" >&2
        fail "\"$name\" failed; the whole log is $LOG. Fix the cause and run make setup again."
    fi
    printf '%d s\n' $((SECONDS - started))
}

create_venv() {
    "$PYTHON_FOUND" -m venv --clear "$VENV" ||
        fail "python -m venv failed. On Debian or Ubuntu: apt install python$(version_of "$PYTHON_FOUND")-venv"
}

# Without --no-compile, pip spends half of its time compiling byte code that is mostly never imported.
pip_install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --no-compile --no-deps "$@"
}

# Plain PyPI has only CUDA builds of torch, so a CPU build comes from the configured index or else PyTorch's own.
install_torch() {
    local torch
    torch=$(grep '^torch==' "$LOCK")
    pip_install "$torch" || pip_install --index-url "$TORCH_CPU_INDEX" "$torch"
}

# Compile byte code only of what the commands import, even if PYTHONDONTWRITEBYTECODE is set: without it every process
# compiles torch, transformers and vLLM again for half a minute.
compile_used() {
    env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c "import $1"
}

check_install() {
    "$VENV/bin/python" - "$DEVICE" <<'PYTHON'
import sys
import torch
if sys.argv[1] == "cpu" and torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build; the cpu lock wants a +cpu build")
PYTHON
    "$VENV/bin/lorikeet" --help
}

DEVICE=$(find_device)
LOCK=requirements/$DEVICE.lock
[[ -f $LOCK ]] || fail "there is no $LOCK; LORIKEET_DEVICE must be cpu or gpu, got '$DEVICE'."
# Package names are included, because an editable install only knows the packages that existed when it was made.
WANTED="$DEVICE $({ cat "$LOCK" pyproject.toml scripts/setup.sh && printf '%s\n' */__init__.py; } | sha256sum | cut -d ' ' -f 1)"
if [[ -f $STAMP && $(<"$STAMP") == "$WANTED" ]] && has_wanted_python; then
    exit 0
fi

# Another device needs another vllm build under the same import name, so recreate the environment.
INSTALLED_DEVICE=$(cut -d ' ' -f 1 "$STAMP" 2>/dev/null || true)
PYTHON_FOUND=$(find_python)
if [[ ${INSTALLED_DEVICE:-$DEVICE} != "$DEVICE" ]] || ! has_wanted_python ||
    ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    printf 'setup: environment for %s in %s, with %s\n' "$DEVICE" "$VENV" "$("$PYTHON_FOUND" --version)"
    create_venv
fi
rm -f "$STAMP" # Written last: its presence marks the environment complete.
: >"$LOG"
[[ $DEVICE == cpu ]] && step "torch for CPU" install_torch
step "$(grep -c '==' "$LOCK") pinned packages (a few minutes the first time)" pip_install -r "$LOCK"
[[ ${1:-} == packages ]] && exit 0
step "lorikeet itself" pip_install --no-build-isolation --editable .
step "check" check_install
step "byte code of the training stack" compile_used "train.base, train.pipeline, train.tables"
SERVING="serve.app, serve.build, serve.engine.engine, serve.engine.worker, vllm.v1.engine.core"
SERVING="$SERVING, vllm.v1.executor.multiproc_executor, vllm.model_executor.models.llama"
[[ $DEVICE == cpu ]] && SERVING="$SERVING, vllm.v1.worker.cpu_worker, vllm.v1.worker.cpu_model_runner"
step "byte code of the serving stack" compile_used "$SERVING"
[[ $DEVICE == cpu ]] && step "the LoRA operator (without a C++ compiler: plain torch)" "$VENV/bin/python" -m serve.kernels.build
printf '%s\n' "$WANTED" >"$STAMP"
printf 'setup: done in %d s\n' "$SECONDS"
