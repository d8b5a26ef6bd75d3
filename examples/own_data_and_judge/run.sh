#!/usr/bin/env sh
# Which loss is better on your pairs, by your measure?
#
#     sh examples/own_data_and_judge/run.sh MODEL OUT
#
# MODEL is the policy to start from: a folder as save_pretrained writes it, or a name on the hub.
set -eu
PATH="$PWD/.venv/bin:$PATH"
MODEL=${1:?name a model: a folder or a hub name}
OUT=${2:-results/own_data_and_judge}

dpobench run --variants dpo,ipo --beta-grid 0.1,0.5 --model "$MODEL" --data examples/own_data_and_judge/pairs.jsonl \
    --judge gold --set evaluation.judge_settings.function=examples/own_data_and_judge/judge.py:score \
    --set recipe.batch=8 --set recipe.learning_rate=5e-4 --set data.heldout_share=0.25 --out "$OUT"
