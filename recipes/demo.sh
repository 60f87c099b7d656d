#!/bin/sh
# What 4 bits cost on a real model, and how its answers change: SmolLM2-135M-Instruct where it can be had, else the model
# that ships with dfq. Five minutes on two cores (4 min 37 s measured).
#   recipes/demo.sh DFQ OUT    DFQ: the dfq command; OUT: a folder, finished parts of which are kept
set -e
dfq=$1
out=$2
real=smollm2-135m-instruct
question="What is the capital of France?"
mkdir -p "$out"

answer() { # the model $1 answers the question, in at most 100 characters: broken models repeat themselves
  "$dfq" generate --model "$1" --chat --prompt "$question" --max-new-tokens 48 2>"$out/log" >"$out/text" || return 1
  tr "\n" " " <"$out/text" | sed -E 's/^(.{100}).+/\1.../; s/ +$//'
}

stage() { # runs dfq with the arguments, the last of which is the folder that it writes; skipped where that exists
  for folder; do :; done
  [ -d "$folder" ] && return
  echo "+ dfq $*"
  "$dfq" "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
}

if ! answer "$real" >"$out/answer"; then
  echo "SmolLM2-135M cannot be had: $(tail -n 1 "$out/log")"
  echo "So this is the model that ships with dfq (8 M parameters); it says little about large models."
  exec "$dfq" compare --model reference --dataset stdlib --seqlen 1024 --windows 8 --batch 4 \
    --samples 16 --calibration-seqlen 512 --decode 16 --refine-seqlen 1024 --out "$out/reference" --overwrite
fi

echo "SmolLM2-135M-Instruct to 4 bits. W4A8KV4: weights and KV cache in 4 bits, activations in 8; W4A4KV4: all in 4."
echo "Embedding and head: 8 bits. Text of calibration and evaluation: the Python standard library on this machine."
echo
stage quantize --model "$real" --scheme w4a4kv4 --algorithm rtn --embed 8 --head 8 --out "$out/rounded-w4a4kv4"
stage rotate --model "$real" --method hadamard \
  --dataset stdlib --seqlen 1024 --out "$out/rotated"
stage calibrate --model "$out/rotated" --dataset stdlib --samples 12 --seqlen 512 --no-hessians --no-statistics \
  --out "$out/calibration"
for scheme in w4a8kv4 w4a4kv4; do
  stage quantize --model "$out/rotated" --calibration "$out/calibration" --scheme $scheme --embed 8 --head 8 \
    --out "$out/$scheme"
done

echo
echo "rounded-w4a4kv4: rounded to nearest, no rotation. The others: rotated, transformed, then GPTQ."
"$dfq" eval ppl --model "$real" --model "$out/rounded-w4a4kv4" --model "$out/w4a4kv4" --model "$out/w4a8kv4" \
  --dataset stdlib --seqlen 1024 --windows 4 2>"$out/log" || { cat "$out/log" >&2; exit 1; }

echo
echo "\"$question\""
echo "  16 bits:          $(cat "$out/answer")"
for model in w4a8kv4 w4a4kv4 rounded-w4a4kv4; do
  printf '  %-17s %s\n' "$model:" "$(answer "$out/$model")"
done
echo
echo "The folder of a model serves it: dfq serve --model $out/w4a8kv4"
