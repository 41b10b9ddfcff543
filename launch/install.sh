#!/usr/bin/env bash
# Installs fmboost_jax for one kind of device and checks that its commands start. The Dockerfile runs it; it also works on
# a TPU VM or any other machine.
#
#   launch/install.sh [cpu|cuda|tpu]     default: cpu
#   PYTHON=python3.11                    interpreter to install into; default: python3
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
case ${1:-cpu} in
    cpu) extras=web,hub ;;
    cuda) extras=cuda,web,hub ;;
    tpu) extras=tpu,web,hub ;;
    *)
        echo "error: device $1 is unknown; expected one of cpu, cuda, tpu" >&2
        exit 2
        ;;
esac
"$python" -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[$extras]"
"$python" -m fmboost_jax --version
"$python" -m fmboost_jax sample --help >/dev/null
