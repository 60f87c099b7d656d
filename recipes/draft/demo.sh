#!/bin/sh
# From a 16-bit model to text from a 4-bit one with a draft: rotate, quantize, train, compare.
#   recipes/draft/demo.sh DFQ OUT [MODEL]    DFQ: the dfq command; OUT: a folder, finished parts of which are kept;
#                                            MODEL: a folder, hub id or alias (default: reference, the model in the package)
set -e
dfq=$1
out=$2
model=${3:-reference}
mkdir -p "$out"
if [ "$model" = reference ]; then
  train="--samples 192 --seqlen 192 --held-out 8 --epochs 2 --evaluations 4"
else # a real vocabulary wants a head of few rows, and more text: some ten minutes on two cores for 135 M
  train="--samples 768 --seqlen 256 --held-out 16 --epochs 1 --evaluations 4 --regenerate --draft-vocab auto"
fi
[ -d "$out/rotated" ] || "$dfq" rotate --model "$model" --dataset stdlib --method hadamard --out "$out/rotated"
[ -d "$out/calibration" ] || "$dfq" calibrate --model "$out/rotated" --dataset stdlib --samples 16 --seqlen 512 \
  --out "$out/calibration"
[ -d "$out/packed" ] || "$dfq" quantize --model "$out/rotated" --calibration "$out/calibration" --scheme w4a4kv4 \
  --out "$out/packed"
# shellcheck disable=SC2086
[ -d "$out/draft" ] || "$dfq" draft train --model "$out/packed" --dataset stdlib $train --quantize-draft w4 \
  --out "$out/draft"
"$dfq" draft eval --model "$out/packed" --draft "$out/draft" --draft ngram --dataset stdlib --count 10 \
  --max-new-tokens 96 --chain 1 --chain 3 --tree 4,3,10 --adaptive --require-lossless --out "$out/eval.json" --overwrite
"$dfq" draft generate --model "$out/packed" --draft "$out/draft" --prompt "def read(self, size):" --max-new-tokens 64
