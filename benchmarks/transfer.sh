#!/usr/bin/env bash
# Does it help to have seen synthetic brains first? A network is trained on synthetic images of label maps, then fine-tuned on real
# images, beside the same network from scratch: for several budgets, on the same folds, with everything else alike.
#
#   benchmarks/transfer.sh LABELMAPS DATASET OUT
#
#   LABELMAPS  label maps whose dataset.json has the table MERGE
#   DATASET    images with labels, at least ten persons, whose classes have the names of that table
#   OUT        everything goes here; what is there already is not done again
#
# Numbers can be set before the command: PRETRAIN=2000 STEPS="25 100 400" FOLDS=0,1,2,3,4 JOBS=2 benchmarks/transfer.sh ...
# OUT/figures/transfer.png has both curves; OUT/cv_N/README.md the scores and tests of each budget. See docs/synthesis.md.
set -euo pipefail
if [ $# -ne 3 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
fi
maps=$1 data=$2 out=$3
MERGE=${MERGE:-to_feta7}
SPACING=${SPACING:-2}
IMAGES=${IMAGES:-8}
PRETRAIN=${PRETRAIN:-450}
STEPS=${STEPS:-"25 100"}
FOLDS=${FOLDS:-0,1,2}
THREADS=${THREADS:-1}
JOBS=${JOBS:-1}
VALIDATE=${VALIDATE:-25}
export OMP_NUM_THREADS=$THREADS

# The recipe is planned for the real data, once, and is the same for all trainings but for their number of steps.
mkdir -p "$out"
[ -f "$out/recipe.toml" ] ||
    uxnet plan "$data" -o "$out/recipe.toml" --spacing "$SPACING" "$SPACING" "$SPACING" --size narrow --device cpu --no-timed

uxnet synthesise "$maps" -o "$out/synthetic" --merge "$MERGE" --spacing "$SPACING" --images-per-map "$IMAGES" --workers "$JOBS"
# Nothing is chosen by its validation, whole heads, so that is done once and without overlaps.
[ -f "$out/pretrained/model.uxnet" ] ||
    uxnet train "$out/synthetic" --recipe "$out/recipe.toml" -o "$out/pretrained" --resume --device cpu --workers "$JOBS" \
        --set training.steps="$PRETRAIN" --set training.validate_every="$PRETRAIN" --set schedule.warmup_steps=20 \
        --set inference.overlap=0

# What the pretrained network does to real images before it has seen any.
uxnet predict "$out/pretrained/model.uxnet" "$data/imagesTr" -o "$out/unseen" --threads "$THREADS" --overlap 0.5
uxnet evaluate "$out/unseen" "$data/labelsTr" -o "$out/unseen.json"

records=()
for steps in $STEPS; do
    uxnet crossval "$data" --recipe "$out/recipe.toml" -o "$out/cv_$steps" --steps "$steps" --folds "$FOLDS" \
        --variant scratch=recipe --variant finetuned=recipe --init finetuned="$out/pretrained/model.uxnet" \
        --set training.validate_every="$VALIDATE" --set schedule.warmup_steps=5 --device cpu --threads "$THREADS" --jobs "$JOBS"
    records+=(--records "$out/cv_$steps")
done
uxnet reproduce transfer "${records[@]}" -o "$out/figures" --note "Pretrained on synthetic images from real label maps, $PRETRAIN steps."
for steps in $STEPS; do
    uxnet compare "$out/cv_$steps" --against finetuned -o "$out/figures/compare_$steps.md"
done
