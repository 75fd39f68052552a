#!/usr/bin/env bash
# Two hosts with addresses of their own on one machine: two network namespaces with a wire between
# them. Trains one rank on each, then again, cutting the wire and killing a rank in the middle:
# both times all must end within the limit, name who is gone, and resume to the same weights.
#
#     sudo scripts/two_hosts.sh [PROGRAM]      # needs Open MPI; PROGRAM has --features mpi
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/release/roclip-train}")
limit=5

source scripts/hosts.sh
work=$hosts_work

# train NAME FLAGS...
train() {
    local name=$1
    shift
    on_hosts "$program" --config demo/train.toml --epochs 2 --batch-size 32 \
        --match-every 2 --zeroshot-frequency 0 --threads 1 --workers 1 --log-every-n-steps 10 \
        --save-every-n-steps 5 --dist-timeout $limit --logs "$work/logs" --name "$name" "$@"
}
weights() { sha256sum <"$work/logs/$1/open_clip_model.safetensors"; }

# disturbed NAME COMMAND...: does that to the run after 20 steps; how long it takes to end.
disturbed() {
    local name=$1 began
    shift
    train "$name" >"$work/$name.txt" 2>&1 &
    until [ "$(cat "$work/logs/$name/metrics.jsonl" 2>/dev/null | wc -l)" -ge 20 ]; do sleep 0.1; done
    began=$SECONDS
    "$@"
    if wait $!; then echo "the run did not notice" && exit 1; fi
    echo "$name: ended $((SECONDS - began)) s later: $(grep -h 'all ranks end' "$work/$name.txt")"
    [ $((SECONDS - began)) -le $((2 * limit)) ]
    grep -q 'roclip-train: rank . on .*; all ranks end' "$work/$name.txt"
}
cut() { ip -n roclip1 link set wire1 down; }
kill_one() { kill -9 "$(ip netns pids roclip2 | xargs -n1 sh -c \
    'grep -q roclip-train /proc/$0/comm && echo $0' | head -1)"; }

hosts_up
train whole >"$work/whole.txt" 2>&1
grep -h 'Running on' "$work/whole.txt"
disturbed cut cut
ip -n roclip1 link set wire1 up
train cut --resume latest >"$work/cut.txt" 2>&1
disturbed killed kill_one
train killed --resume latest >"$work/killed.txt" 2>&1
for name in cut killed; do
    [ "$(weights $name)" = "$(weights whole)" ] && echo "$name: resumed to the same weights"
done
