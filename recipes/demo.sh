#!/bin/sh
# What 4 bits cost on a real model, and how its answers change: SmolLM2-135M-Instruct where it can be had, else the model
# that ships with dfq. Under five minutes on two cores.
#   recipes/demo.sh DFQ OUT    DFQ: the dfq command; OUT: a folder, finished parts of which are kept
set -e
dfq=$1
out=$2
real=smollm2-135m-instruct
question="Give me three tips for staying healthy."
mkdir -p "$out"

answer() { # the model $1 answers the question
  "$dfq" generate --model "$1" --chat --prompt "$question" --max-new-tokens 64
}

stage() { # runs dfq with the arguments, the last of which is the folder that it writes; skipped where that exists
  for folder; do :; done
  [ -d "$folder" ] && return
  echo "+ dfq $*"
  "$dfq" "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
}

if ! answer "$real" >"$out/answer-16.txt" 2>"$out/why.txt"; then
  echo "SmolLM2-135M cannot be had: $(tail -n 1 "$out/why.txt")"
  echo "So this is the model that ships with dfq (8 M parameters); it says little about large models."
  exec "$dfq" compare --model reference --dataset stdlib --seqlen 1024 --windows 8 --batch 4 \
    --samples 16 --calibration-seqlen 512 --decode 16 --refine-seqlen 1024 --out "$out/reference" --overwrite
fi

echo "SmolLM2-135M-Instruct to 4 bits: weights, activations and KV cache (W4A4KV4), embedding and head in 8 bits."
echo "Text for calibration and evaluation: the Python standard library on this machine."
stage quantize --model "$real" --scheme w4a4kv4 --algorithm rtn --embed 8 --head 8 --out "$out/plain"
stage rotate --model "$real" --method hadamard --dataset stdlib --out "$out/rotated"
stage quantize --model "$out/rotated" --scheme w4a4kv4 --algorithm rtn --embed 8 --head 8 --out "$out/rotated-rtn"
stage calibrate --model "$out/rotated" --dataset stdlib --samples 16 --seqlen 512 --no-hessians --no-statistics \
  --out "$out/calibration"
stage quantize --model "$out/rotated" --calibration "$out/calibration" --scheme w4a4kv4 --embed 8 --head 8 \
  --out "$out/packed"

echo
echo "What it cost. plain: rounded to nearest; rotated-rtn: the same after a rotation; packed: rotation and GPTQ."
"$dfq" eval ppl --model "$real" --model "$out/plain" --model "$out/rotated-rtn" --model "$out/packed" \
  --dataset stdlib --seqlen 1024 --windows 6

echo
echo "\"$question\""
echo "--- 16 bits:"
cat "$out/answer-16.txt"
for model in plain packed; do
  echo "--- 4 bits, $model:"
  answer "$out/$model"
done
