#!/bin/sh
# The reference model that sees, in W4A4KV4, and what a draft is worth on it.
#   recipes/vlm/run.sh DFQ OUT    finished parts are kept
set -e
dfq=$1
out=$2
mkdir -p "$out"
data="--dataset shapes"
[ -d "$out/rotated" ] || "$dfq" rotate --model reference-vlm --method hadamard --out "$out/rotated"
[ -d "$out/packed" ] || "$dfq" quantize --model "$out/rotated" --algorithm rtn --scheme w4a4kv4 --out "$out/packed"
train() {
  [ -d "$out/$1" ] || "$dfq" draft train --model "$out/packed" $data --regenerate --samples 192 --held-out 8 \
    --seqlen 64 --evaluations 2 --out "$out/$1" $2
}
measure() {
  "$dfq" draft eval --model "$out/packed" --draft "$out/$1" $data --count 50 --chain 3 --tree 4,3,10 \
    --require-lossless --overwrite --out "$out/$2.json" --keep-visual "$3"
}
train dream ""
train no-cross "--no-cross --intermediate 848"
measure dream dream-075 0.75
measure dream dream-all 1
measure no-cross no-cross-075 0.75
