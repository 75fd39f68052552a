#!/usr/bin/env bash
# What a step costs between two hosts, by the rate of the wire: benches/ranks.rs on two network
# namespaces whose wire tc slows down. docs/scaling.md compares its model with this.
#
#     sudo scripts/slow_wire.sh BENCH OUT    # target/release/deps/ranks-*, with --features mpi
set -euo pipefail
cd "$(dirname "$0")/.."
bench=$(realpath "$1") out=$(realpath "$2")
source scripts/hosts.sh

for rate in 10gbit 1gbit 300mbit; do
    hosts_up "$rate"
    echo "== $rate"
    on_hosts "$bench" --json "$out/wire-$rate.json" ViT-nano-8-32px 64 1 10
done
