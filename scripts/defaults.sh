#!/usr/bin/env bash
# What every training command makes of the demo's world with its default flags, but for one pass over pairs: the
# table of docs/defaults.md.
#   scripts/defaults.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
collimate="${CARGO_TARGET_DIR:-target}/release/collimate"
dir="${1:-$(mktemp -d)}"
world="$dir/world"
mkdir -p "$dir"
"$collimate" demo --output-dir "$world" >"$dir/demo.log" 2>&1

# A number and its interval, of the table that eval printed.
value() {
    awk -v name="$2" '$1 == name { if ($3 == "±") printf "%.2f ± %.2f", $2, $4; else print $2, $3, $4, $5 }' "$1"
}

# name, command and flags: trains from the supervised model, and measures fresh samples by the true reward.
policy() {
    local name="$1"
    shift
    "$collimate" "$@" --model "$world/sft" --output-dir "$dir/$name" >"$dir/$name.log" 2>&1
    "$collimate" eval --model "$dir/$name" --reference-model "$world/sft" --reward demo \
        --prompts "$world/prompts.jsonl" >"$dir/$name.txt"
    if [ "$name" = sigmoid ]; then
        echo "| the supervised model | $(value "$dir/$name.txt" reward/reference) | | 0 | |"
    fi
    local columns=""
    for column in reward win_rate kl completion_tokens; do
        columns="$columns $(value "$dir/$name.txt" "$column") |"
    done
    echo "| \`$name\` |$columns"
}

echo "| | reward | win rate | KL | tokens |"
echo "|---|---|---|---|---|"
for loss in sigmoid hinge ipo ipo_sum robust exo_pair apo_zero apo_down nca_pair sppo_hard sigmoid_norm \
    psi_po slic_hf kto_paired simpo orpo cpo discopop aot aot_unpaired; do
    policy "$loss" dpo --num-train-epochs 1 --loss-type "$loss" --dataset "$world/train.jsonl"
done
policy kto kto --num-train-epochs 1 --dataset "$world/train.jsonl"
policy spin spin --dataset "$world/train.jsonl"
for method in ppo rloo grpo online-dpo; do
    policy "$method" "$method" --reward demo --dataset "$world/prompts.jsonl"
done
"$collimate" sft --model "$world/sft" --dataset "$world/judge.jsonl" --output-dir "$dir/judge" >"$dir/judge.log" 2>&1
"$collimate" rlaif --judge "$dir/judge" --judge-templates "$world/judge.yaml" --dataset "$world/train.jsonl" \
    --output "$dir/judged.jsonl" >"$dir/labels.txt" 2>&1
policy rlaif dpo --num-train-epochs 1 --dataset "$dir/judged.jsonl"

echo
grep '^agreement' "$dir/labels.txt"
"$collimate" reward --model "$world/sft" --dataset "$world/train.jsonl" --num-train-epochs 1 --output-dir "$dir/reward" >"$dir/reward.log" 2>&1
"$collimate" eval --reward-model "$dir/reward" --dataset "$world/test.jsonl" | grep '^accuracy'
"$collimate" sft --model "$world/init" --dataset "$world/corpus.jsonl" --output-dir "$dir/sft" >"$dir/sft.log" 2>&1
for model in "$world/init" "$dir/sft"; do
    "$collimate" eval --model "$model" --dataset "$world/test.jsonl" | grep '^perplexity/chosen'
done
