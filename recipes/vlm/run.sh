#!/bin/sh
# The reference VLM, in W4A4KV4, and what each part of a draft is worth on it.
#   recipes/vlm/run.sh PYTHON OUT    PYTHON: of an environment with dfq; finished parts are kept
set -e
python=$1
out=$2
dfq=$(dirname "$python")/dfq
mkdir -p "$out"
[ -d "$out/rotated" ] || "$dfq" rotate --model reference-vlm --method hadamard --out "$out/rotated"
[ -d "$out/packed" ] || "$dfq" quantize --model "$out/rotated" --algorithm rtn --scheme w4a4kv4 --out "$out/packed"
"$python" "$(dirname "$0")/../draft/ablations.py" --target "$out/packed" --rotated "$out/rotated" --original reference-vlm \
  --out "$out/drafts" --dataset shapes --samples 192 --seqlen 64 --epochs 2 --prompts 50
