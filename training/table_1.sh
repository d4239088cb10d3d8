#!/usr/bin/env bash
# Table I at a size for two cores: at equal data, steps and seeds, the policy without CLAMP, without it but pretrained,
# with CLAMP's encoders only, and with CLAMP (encoders and pretrained policy). Every step goes on where it was, so the same
# command continues after an interruption; with fewer SEEDS or TASKS first, more of them later. JOBS policies are trained
# and scored at a time, each with its share of the cores: these networks are too small for one of them to use two.
# FAMILY names the experiments, FAMILY_METHOD each, CAMERAS those that their demonstrations need, METHODS the columns,
# PRETRAINING the tasks whose demonstrations the encoders and the pretrained policy learn from; TASKS are scored.
#   training/table_1.sh runs/table_1_mug
#   FAMILY=drawer CAMERAS=front_left,back_right,wrist_left TASKS=drawer_open_easy training/table_1.sh runs/table_1_drawer
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: training/table_1.sh FOLDER}
methods=${METHODS:-without_clamp pretrained encoders_only clamp}
family=${FAMILY:-mug}
cameras=${CAMERAS:-front_left,back_right,wrist_right}
tasks=${TASKS:-mug_on_plate_easy}
pretraining=${PRETRAINING:-$tasks}
seeds=${SEEDS:-0 1 2}
episodes=${EPISODES:-400}
trials=${TRIALS:-50}
cores=$(nproc)
jobs=${JOBS:-$cores}
held_out=10
clamp=.venv/bin/clamp
encoders=$out/encoders/encoders.safetensors

for task in $(printf '%s\n' $pretraining $tasks | sort -u); do
    $clamp demos --task "$task" --episodes "$episodes" --cameras "$cameras" --workers "$cores" --out "$out/demos/$task"
    $clamp train convert "$out/demos/$task" --experiment "${family}_encoders_only" --workers "$cores" --out "$out/stores/$task"
done

data=(--held-out "$held_out" --store)
for task in $pretraining; do
    data+=("$out/stores/$task")
done
$clamp train encoders --experiment "${family}_encoders_only" "${data[@]}" --out "$out/encoders"
case " $methods " in *" pretrained "* | *" clamp "*)
    $clamp train policy --experiment "${family}_pretraining" "${data[@]}" --normalization "$encoders" --out "$out/pretrained" ;;
esac

# One policy, from training to its score.
score() {
    local task=$1 method=$2 seed=$3
    local name=${task}_${method}_$seed
    local run=$out/policies/$name artifact=$out/artifacts/$name experiment=(--experiment "${family}_$method")
    local reads=(--encoders "$encoders") train
    case $method in
        without_clamp) reads=() && train=(policy --normalization "$encoders") ;;
        pretrained) reads=() && train=(finetune --initial "$out/pretrained/policy.safetensors") ;;
        encoders_only) train=(policy "${reads[@]}") ;;
        clamp) train=(finetune "${reads[@]}" --initial "$out/pretrained/policy.safetensors") ;;
    esac
    mkdir -p "$run"
    {
        $clamp train "${train[@]}" "${experiment[@]}" --store "$out/stores/$task" --held-out "$held_out" --seed "$seed" \
            --threads "$(((cores + jobs - 1) / jobs))" --out "$run" &&
            { [ -f "$artifact/manifest.json" ] ||
                $clamp train export "${experiment[@]}" "${reads[@]}" --policy "$run/policy.safetensors" \
                    --store "$out/stores/$task" --task "$task" --out "$artifact" \
                    --data "$episodes scripted demonstrations of $task, the last $held_out held out."; } &&
            $clamp eval --artifact "$artifact" --task "$task" --episodes "$trials" --workers 1 --out "$out/scores"
    } >>"$run/log.txt" 2>&1 || { echo "$name failed; see $run/log.txt" >&2 && return 1; }
    grep " success, " "$run/log.txt" | tail -n 1
}
export -f score
export out clamp encoders episodes held_out trials cores jobs family

echo "training and scoring, $jobs at a time; the logs are $out/policies/*/log.txt"
for seed in $seeds; do
    for task in $tasks; do
        for method in $methods; do
            echo "$task $method $seed"
        done
    done
done | xargs -P "$jobs" -L 1 bash -euo pipefail -c 'score "$@"' score

results=()
for seed in $seeds; do
    for task in $tasks; do
        for method in $methods; do
            results+=("$out/scores/${task}_${method}_${seed}_$task.json")
        done
    done
done
$clamp report "${results[@]}" --out "$out/table_1.html"
