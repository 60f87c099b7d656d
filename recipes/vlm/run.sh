#!/bin/sh
# A small model that sees, from the reference model: trained, rotated, its language model in W4A4KV4, a draft for it.
#   recipes/vlm/run.sh PYTHON DFQ OUT    finished parts are kept
set -e
here=$(dirname "$0")
python=$1
dfq=$2
out=$3
[ -d "$out/vision" ] || "$python" "$here/train.py" --out "$out"
[ -d "$out/rotated" ] || "$dfq" rotate --model "$out/lm" --dataset stdlib --method hadamard --out "$out/rotated"
[ -d "$out/packed" ] || "$dfq" quantize --model "$out/rotated" --algorithm rtn --scheme w4a4kv4 --out "$out/packed"
"$python" "$here/table.py" --lm "$out/packed" --rotated "$out/rotated" --vision "$out/vision" --out "$out/table"
