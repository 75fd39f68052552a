# To be sourced: two hosts with addresses of their own on one machine, as network namespaces with a
# wire between them. Needs root, iproute2 and Open MPI. Gives `hosts_up [RATE]` (of the wire, as tc
# writes it), `hosts_down` and `on_hosts COMMAND...`, which starts a rank on each. mpirun itself takes
# 7 s to miss the other host: ranks whose --dist-timeout is less say so before it ends them.

hosts_work=$(mktemp -d)
hosts_down() { ip netns del roclip1 2>/dev/null || true; ip netns del roclip2 2>/dev/null || true; }
trap 'hosts_down; rm -rf "$hosts_work"' EXIT

hosts_up() {
    hosts_down
    ip netns add roclip1 && ip netns add roclip2
    ip -n roclip1 link add wire1 type veth peer name wire2 netns roclip2
    for n in 1 2; do
        ip -n roclip$n addr add 10.77.0.$n/24 dev wire$n
        ip -n roclip$n link set wire$n up
        ip -n roclip$n link set lo up
        if [ $# -gt 0 ]; then
            ip netns exec roclip$n tc qdisc add dev wire$n root tbf rate "$1" burst 1mb latency 50ms
        fi
    done
}

# In place of ssh: `agent HOST COMMAND...` runs the command on that host.
cat >"$hosts_work/agent" <<'AGENT'
#!/usr/bin/env bash
host=$1 n=${1##*.}
shift
exec ip netns exec "roclip$n" unshare --uts sh -c "hostname host$n; $*"
AGENT
chmod +x "$hosts_work/agent"

on_hosts() {
    "$hosts_work/agent" 10.77.0.1 exec mpirun --allow-run-as-root --host 10.77.0.1,10.77.0.2 \
        --mca plm_rsh_agent "$hosts_work/agent" --mca btl tcp,self --mca pml ob1 \
        --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
        --mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 1 \
        --mca oob_tcp_keepalive_probes 2 --mca hwloc_base_binding_policy none \
        -x MASTER_ADDR=10.77.0.1 "$@"
}
