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

work=$(mktemp -d)
up() {
    ip netns add roclip1 && ip netns add roclip2
    ip -n roclip1 link add wire1 type veth peer name wire2 netns roclip2
    for n in 1 2; do
        ip -n roclip$n addr add 10.77.0.$n/24 dev wire$n
        ip -n roclip$n link set wire$n up
        ip -n roclip$n link set lo up
    done
}
down() { ip netns del roclip1 2>/dev/null || true; ip netns del roclip2 2>/dev/null || true; }
trap 'down; rm -rf "$work"' EXIT

# In place of ssh: `agent HOST COMMAND...` runs the command on that host.
cat >"$work/agent" <<'AGENT'
#!/usr/bin/env bash
host=$1 n=${1##*.}
shift
exec ip netns exec "roclip$n" unshare --uts sh -c "hostname host$n; $*"
AGENT
chmod +x "$work/agent"

# train NAME FLAGS...
train() {
    local name=$1
    shift
    "$work/agent" 10.77.0.1 exec mpirun --allow-run-as-root --host 10.77.0.1,10.77.0.2 \
        --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca pml ob1 \
        --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
        --mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 \
        --mca oob_tcp_keepalive_probes 2 \
        -x MASTER_ADDR=10.77.0.1 "$program" --config demo/train.toml --epochs 2 --batch-size 32 \
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

down
up
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
