#!/usr/bin/env bash
# The parts of the recipe, each left out or changed, with the same short budget: one table row for each.
#   bash recipes/omgsr_tiny/ablation.sh x4v3.safetensors benchmarks/realsr [STEPS]
# Needs what README.md of this folder fetches, and leaves its runs in runs/ablation. A second start goes on.
set -euo pipefail
network=$1 pairs=$2 steps=${3:-150}
here=$(dirname "$0") out=runs/ablation
mkdir -p "$out"

begin() { # NAME DENOISER: a model to start from
    [ -d "$out/$1" ] || python "$here/encoder.py" "$network" --photos photos --denoiser "$2" --out "$out/$1"
}

run() { # NAME CHANGES...: train, and measure
    local name=$1 checkpoint
    shift
    checkpoint="$out/$name/step-$(printf %08d "$steps")"
    [ -d "$checkpoint" ] || omgsr train "$here/teach.toml" --set save.out="$out/$name" --set train.steps="$steps" \
        --set data.batch_size=4 --set loss.teacher.dists=0 --set optim.warmup_steps=20 --set optim.lr=2e-4 \
        --set train.ema=0.98 --set save.every="$steps" "$@" > /dev/null
    printf '%s\t' "$name"
    python "$here/evaluate.py" --features features --data "$pairs" --model "$checkpoint" | tail -n 1
}

[ -d "$out/latents" ] || python "$here/latents.py" --photos photos --out "$out/latents"
[ -d "$out/pretrained" ] || omgsr train "$here/pretrain.toml" --set model.start_from="$out/latents" \
    --set save.out="$out/pretrained" --set train.steps=600 > /dev/null
begin start "$(ls -d "$out"/pretrained/step-* | tail -n 1)"
begin start-new "$out/latents"

run whole --set model.start_from="$out/start"
run no-pre-training --set model.start_from="$out/start-new"
run first-timestep --set model.start_from="$out/start" --set model.mid_timestep=0
run computed-timestep --set model.start_from="$out/start" --set model.mid_timestep=211
run last-timestep --set model.start_from="$out/start" --set model.mid_timestep=999
run no-lrr --set model.start_from="$out/start" --set loss.lrr=0.0
