#!/usr/bin/env bash
# Check and measure omgsr on a GPU in less than ten minutes, without a download: the tests of devices, results against
# those of the CPU, eight training steps with kill and resume, and the speed of a model of Stable Diffusion 2.1's shape.
#
#     benchmarks/gpu.sh [--model NAME] [REPORT.md]
#
# --model also times a model that is installed, or a folder.
#
# Environment: DEVICE (cuda; xpu, mps, cpu), SHAPE (sd21; toy), PRECISION (bf16), MEGAPIXELS (0.25,1,4,16: 512 to 4096).
# A try without a GPU: DEVICE=cpu SHAPE=toy PRECISION=fp32 MEGAPIXELS=0.0625 benchmarks/gpu.sh
# To install without a network, put the wheels beside the checkout: pip install --no-index --find-links wheels -e '.[dev]'
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
device=${DEVICE:-cuda} shape=${SHAPE:-sd21} precision=${PRECISION:-bf16} megapixels=${MEGAPIXELS:-0.25,1,4,16}
model=
if [ "${1:-}" = --model ]; then
    model=${2:?--model needs a name}
    shift 2
fi
report=${1:-gpu-report.md} failed=0 errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
export HF_HUB_OFFLINE=1
: >"$report"

# Run a part, add what it prints to the report, and go on if it fails.
part() {
    local title=$1
    shift
    printf '\n## %s\n\n' "$title" | tee -a "$report"
    if ! "$@" 2>"$errors" | tee -a "$report"; then
        failed=1
        { printf '\nfailed: %s\n\n```\n' "$*"; tail -n 15 "$errors"; printf '```\n'; } | tee -a "$report"
    fi
}

printf '# omgsr on %s\n' "$device" | tee -a "$report"
part "Machine" python benchmarks/gpu.py machine --device "$device"
part "Tests" env OMGSR_TEST_DEVICE="$device" python -m pytest -q -n 0 tests/test_on_device.py
part "Results against the CPU" python benchmarks/gpu.py agree --device "$device"
part "Training" python benchmarks/gpu.py train --device "$device"
part "Ours and the straightforward pipeline, $shape in $precision" \
    python benchmarks/compare.py --device "$device" --shape "$shape" --precision "$precision" --memory 0 \
    --megapixels "$megapixels" --summary
[ -z "$model" ] || part "$model" python benchmarks/gpu.py model --device "$device" --model "$model"
printf '\nThe report is in %s\n' "$report"
exit $failed
