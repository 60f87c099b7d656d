#!/bin/sh
# From the reference model to text from a 4-bit model with a draft: rotate, quantize, train, compare.
#   recipes/draft/demo.sh DFQ OUT    DFQ: the dfq command; OUT: a folder, finished parts of which are kept
set -e
dfq=$1
out=$2
mkdir -p "$out"
[ -d "$out/rotated" ] || "$dfq" rotate --model reference --method hadamard --out "$out/rotated"
[ -d "$out/calibration" ] || "$dfq" calibrate --model "$out/rotated" --dataset stdlib --samples 16 --seqlen 512 \
  --out "$out/calibration"
[ -d "$out/packed" ] || "$dfq" quantize --model "$out/rotated" --calibration "$out/calibration" --scheme w4a4kv4 \
  --out "$out/packed"
[ -d "$out/draft" ] || "$dfq" draft train --model "$out/packed" --dataset stdlib --samples 192 --seqlen 192 \
  --held-out 8 --epochs 2 --evaluations 4 --quantize-draft w4 --out "$out/draft"
"$dfq" draft eval --model "$out/packed" --draft "$out/draft" --dataset stdlib --count 10 --max-new-tokens 96 \
  --chain 1 --chain 3 --tree 4,3,10 --require-lossless --out "$out/eval.json" --overwrite
"$dfq" draft generate --model "$out/packed" --draft "$out/draft" --prompt "def read(self, size):" --max-new-tokens 64
