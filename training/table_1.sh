#!/usr/bin/env bash
# Table I at a size for two cores: at equal data, steps and seeds, the policy without CLAMP, with its encoders only, and
# with CLAMP (encoders and pretrained policy). Every step goes on where it was, so the same command continues after an
# interruption; with fewer SEEDS or TASKS first, more of them later.
#   TASKS="mug_on_plate_easy drawer_open" SEEDS="0 1 2" EPISODES=200 training/table_1.sh runs/table_1
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: training/table_1.sh FOLDER}
tasks=${TASKS:-mug_on_plate_easy drawer_open}
seeds=${SEEDS:-0 1 2}
episodes=${EPISODES:-200}
trials=${TRIALS:-50}
workers=${WORKERS:-2}
held_out=10
clamp=.venv/bin/clamp

stores=()
for task in $tasks; do
    $clamp demos --task "$task" --episodes "$episodes" --workers "$workers" --out "$out/demos/$task"
    $clamp train convert "$out/demos/$task" --experiment small_encoders_only --workers "$workers" --out "$out/stores/$task"
    stores+=("$out/stores/$task")
done

data=(--store "${stores[@]}" --held-out "$held_out")
encoders=$out/encoders/encoders.safetensors
$clamp train encoders --experiment small_encoders_only "${data[@]}" --out "$out/encoders"
$clamp train policy --experiment small_pretraining "${data[@]}" --normalization "$encoders" --out "$out/pretrained"

results=()
for seed in $seeds; do
    for task in $tasks; do
        for method in without_clamp encoders_only clamp; do
            name=${task}_${method}_$seed
            run=$out/policies/$name
            experiment=(--experiment "small_$method")
            data=(--store "$out/stores/$task" --held-out "$held_out")
            reads=(--encoders "$encoders")
            case $method in
                without_clamp) reads=() && train=(policy --normalization "$encoders") ;;
                encoders_only) train=(policy "${reads[@]}") ;;
                clamp) train=(finetune "${reads[@]}" --initial "$out/pretrained/policy.safetensors") ;;
            esac
            $clamp train "${train[@]}" "${experiment[@]}" "${data[@]}" --seed "$seed" --out "$run"
            artifact=$out/artifacts/$name
            [ -f "$artifact/manifest.json" ] ||
                $clamp train export "${experiment[@]}" "${reads[@]}" --policy "$run/policy.safetensors" \
                    --store "$out/stores/$task" --task "$task" --out "$artifact"
            $clamp eval --artifact "$artifact" --task "$task" --episodes "$trials" --workers "$workers" --out "$out/scores"
            results+=("$out/scores/${name}_$task.json")
            $clamp report "${results[@]}" --out "$out/table_1.html"
        done
    done
done
