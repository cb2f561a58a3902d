#!/usr/bin/env bash
# Writes fedcompress/proto/v1/*_pb2*.py from protos/. Usage: protos/generate.sh [OUT_ROOT]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out/fedcompress/proto/v1"
common=(-Ifedcompress/proto/v1=protos/fedcompress/v1 --python_out="$out" --pyi_out="$out")
"$python" -m grpc_tools.protoc "${common[@]}" fedcompress/proto/v1/update.proto
"$python" -m grpc_tools.protoc "${common[@]}" --grpc_python_out="$out" fedcompress/proto/v1/worker.proto
