#!/usr/bin/env bash
# Fills a folder with what `scripts/gpu_report.sh` needs on a host with a GPU and without Rust: the
# tests and benches, built with feature `cuda` and stripped, their golden files, the scripts.
#
#   eval "$(scripts/install-cuda.sh)" && scripts/carry.sh DIR
#
# On the host: DIR/scripts/gpu_report.sh OUT. The processor must be of this machine's kind. Peers
# that the host lacks come with `scripts/peer_wheels.sh`, beside this folder: they are many times as
# large as all of it.
set -euo pipefail
: "${1:?usage: scripts/carry.sh DIR}"
to=$(realpath -m "$1")
cd "$(dirname "$0")/.."
most=64 # MiB
rm -rf "$to/bin" "$to/scripts" "$to/tests"
mkdir -p "$to/bin" "$to/scripts" "$to/tests"

# One line a program: what it is called there, and where cargo left it.
programs() {
    python3 -c '
import json, sys
names = {("lib", "roclip"): "unit", ("test", "main"): "tests"}
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        kind, name = message["target"]["kind"][0], message["target"]["name"]
        print(names.get((kind, name), name), message["executable"])'
}
cargo test --locked --release --no-run --features cuda --lib --test main --bench ops --bench step \
    --bench ranks --message-format json >"$to/bin/messages"
programs <"$to/bin/messages" | while read -r name path; do strip -o "$to/bin/$name" "$path"; done
rm "$to/bin/messages"
for name in tests unit ops step ranks; do
    [ -x "$to/bin/$name" ] || { echo "carry.sh: cargo built no $name" >&2; exit 1; }
done
cp scripts/gpu_report.sh scripts/peer_wheels.{sh,txt} scripts/{gpu_table,peers}.py "$to/scripts/"
mkdir "$to/scripts/peers"
cp scripts/peers/*.py "$to/scripts/peers/"
cp -r tests/golden "$to/tests/"
git describe --always --dirty >"$to/commit"

size=$(du -sm "$to" | cut -f1)
du -m "$to"/bin/* "$to/tests"
echo "$to: $size MiB"
[ "$size" -le "$most" ] || { echo "carry.sh: more than $most MiB" >&2; exit 1; }
