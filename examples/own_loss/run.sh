#!/usr/bin/env sh
# Does a loss of your own do better than DPO? On the embedded default, so no model and no data are needed.
#
#     sh examples/own_loss/run.sh OUT
set -eu
PATH="$PWD/.venv/bin:$PATH"
OUT=${1:-results/own_loss}

dpobench variants check examples/own_loss/clipped_dpo.py
dpobench run --preset tiny --plugin examples/own_loss/clipped_dpo.py --variants dpo,clipped_dpo --beta-grid 0.1 --seeds 0,1 --out "$OUT"
