#!/usr/bin/env bash
# Everything that only a GPU can show, on a host that need not have Rust:
#
#   scripts/gpu_report.sh OUT [BINARIES] [PART...]
#
# BINARIES is the folder `bin` that `scripts/carry.sh` filled (default: beside this script's
# folder). Parts, all of them unless some are named: tests; sanitizer, which is memcheck, racecheck,
# initcheck and synccheck; bench, which is ops, step and ranks; peers, which is peers-ops and peers-step;
# pool and loss, which take turns with their peers: ours with each choice of kernels, then all peers,
# in each of ROUNDS (default "1 2 3"; one at a time is as good). Libraries among the peers are looked for in PEERS
# (default: the folder `peers` beside BINARIES), which `scripts/peer_wheels.sh install` fills.
# Each command ends after LIMIT seconds (default 540). OUT keeps log.txt, results.tsv, the figures
# as JSON, and report.md; a part that is run again replaces its results. Nothing stops at a failure;
# the exit status says whether there was one. What cannot run for want of something has failed.
set -uo pipefail
usage="usage: gpu_report.sh OUT [BINARIES] [PART...]"
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
limit=${LIMIT:-540} rounds=${ROUNDS:-1 2 3}
: "${1:?$usage}"
out=$(realpath -m "$1")
shift
bin=$root/bin
all="tests memcheck racecheck initcheck synccheck ops step ranks pool loss peers-ops peers-step"
parts=()
for word in "$@"; do
    case $word in
        sanitizer) parts+=(memcheck racecheck initcheck synccheck) ;;
        bench) parts+=(ops step ranks) ;;
        peers) parts+=(peers-ops peers-step) ;;
        *)
            if [[ " $all " == *" $word "* ]]; then
                parts+=("$word")
            elif [ -d "$word" ]; then
                bin=$(cd "$word" && pwd)
            else
                echo "gpu_report.sh: $word is neither a part ($all) nor a folder. $usage" >&2
                exit 2
            fi
            ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || read -ra parts <<<"$all"
mkdir -p "$out"
touch "$out/results.tsv" "$out/log.txt"
# what one round has tuned the next one finds
export ROCLIP_ROOT=$root PYTHONUNBUFFERED=1 TRITON_CACHE_AUTOTUNING=1
libraries=${PEERS:-$(dirname "$bin")/peers}
export PYTHONPATH=$libraries${PYTHONPATH:+:$PYTHONPATH}

# What this host has. Each of these prints why not, where something is missing.
find_gpu() {
    if ! command -v nvidia-smi >/dev/null; then
        echo "nvidia-smi is not installed: no NVIDIA driver"
    elif ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
        echo "no NVIDIA GPU: nvidia-smi -L lists none"
    fi
}
find_program() {
    [ -x "$bin/$1" ] || echo "$bin/$1 is missing: run scripts/carry.sh where there is Rust"
}
find_torch() {
    command -v python3 >/dev/null || { echo "python3 is not installed"; return; }
    python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null ||
        echo "python3 has no torch that sees a GPU"
}
# The toolkit's tools and libraries, wherever they are: `toolkit NAME FOLDER...`
toolkit() {
    local name=$1 folder
    shift
    for folder in "$@"; do
        [ -e "$folder/$name" ] && { echo "$folder"; return; }
    done
}
cuda=${CUDA_HOME:-/usr/local/cuda}
sanitizer=$(command -v compute-sanitizer ||
    { folder=$(toolkit compute-sanitizer "$cuda/bin" "$cuda/compute-sanitizer" \
        /usr/local/cuda*/bin /usr/local/cuda*/compute-sanitizer /opt/nvidia/*/ /opt/nvidia/*/*/) &&
        [ -n "$folder" ] && echo "${folder%/}/compute-sanitizer"; })
find_sanitizer() {
    [ -n "$sanitizer" ] || echo "compute-sanitizer is not found (it is part of the CUDA toolkit)"
}
# PyTorch brings libraries where they are not installed.
wheels=$(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null)
# library NAME FOLDER: makes it found where it lies, perhaps in that folder of the wheels.
library() {
    local folder
    ldconfig -p 2>/dev/null | grep -qF "$1" && return
    folder=$(IFS=$'\n'; toolkit "$1" "$cuda/lib64" /usr/local/cuda*/lib64 \
        $(sed "s:\$:/$2:" <<<"$wheels"))
    [ -n "$folder" ] && export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}
library libcublasLt.so.13 cu13/lib || no_cublas=1
library libnccl.so.2 nccl/lib || no_nccl=1
find_cublas() {
    [ -z "${no_cublas:-}" ] ||
        echo "libcublasLt.so.13 is not found: install CUDA 13's cuBLAS or a PyTorch for CUDA 13"
}
find_nccl() {
    [ -z "${no_nccl:-}" ] || echo "libnccl.so.2 is not found: install nvidia-nccl-cu13 or a PyTorch"
}

# result NAME STATUS SECONDS NOTE: a line of results.tsv, instead of an older one of that name.
result() {
    local rest
    rest=$(awk -F'\t' -v name="$1" '$1 != name' "$out/results.tsv")
    { [ -z "$rest" ] || echo "$rest"; printf '%s\t%s\t%s\t%s\n' "$@"; } >"$out/results.tsv.new"
    mv "$out/results.tsv.new" "$out/results.tsv"
    printf '%s %s (%s s): %s\n' "$2" "$1" "$3" "$4"
}

# run NAME COMMAND...: runs it, keeps what it says under `=== NAME` in the log.
run() {
    local name=$1 start=$SECONDS code said
    shift
    { echo "=== $name"; echo "\$ $*" | cut -c1-400; } >>"$out/log.txt"
    said=$(mktemp)
    timeout --kill-after=10 "$limit" "$@" >"$said" 2>&1
    code=$?
    tail -c 1000000 "$said" >>"$out/log.txt"
    local note="exit status $code"
    [ $code -ne 124 ] || note="not done after $limit s"
    note="$note; $(grep -E 'test result|SUMMARY|pairs/s|refused|^device:|Error' \
        "$said" | tail -n 1 | cut -c1-200)"
    rm -f "$said"
    if [ $code -eq 0 ]; then result "$name" PASS $((SECONDS - start)) "$note"
    else result "$name" FAIL $((SECONDS - start)) "$note"; fi
    return $code
}

# needs NAME WHAT...: whether all is there; what is missing is a failure of NAME.
needs() {
    local name=$1 missing="" reason what
    shift
    for what in "$@"; do
        reason=$(find_${what})
        [ -z "$reason" ] || missing="$missing${missing:+; }$reason"
    done
    [ -z "$missing" ] || result "$name" FAIL 0 "missing: $missing"
    [ -z "$missing" ]
}
find_tests() { find_program tests; }
find_unit() { find_program unit; }
find_ops() { find_program ops; }
find_step() { find_program step; }
find_ranks() { find_program ranks; }

# Names of the tests in a binary that need the GPU, those of the operations alone with `ops`.
names() {
    "$bin/$1" --list --format terse 2>/dev/null | sed -n 's/: test$//p' | grep cuda |
        { [ "${2:-}" = ops ] && grep '^ops::' || cat; }
}

tests() {
    local name count
    for name in tests unit; do
        needs "$name" gpu cublas "$name" || continue
        count=$(names "$name" | wc -l)
        # the unit tests have none of their own yet; the others must
        if [ "$count" -eq 0 ]; then
            result "$name" FAIL 0 "no test whose name contains cuda: built without the feature"
            continue
        fi
        run "$name" "$bin/$name" cuda --test-threads 4
    done
}

sanitize() {
    local tool=$1 ours=() list
    needs "$tool" gpu cublas tests sanitizer || return
    mapfile -t list < <(names tests ops)
    [ ${#list[@]} -gt 0 ] || { result "$tool" FAIL 0 "no test of an operation on cuda"; return; }
    # These two look within one kernel, and NVIDIA's own are not ours to judge. The others follow
    # memory from kernel to kernel.
    case $tool in racecheck | synccheck) ours=(--kernel-name kernel_substring=cuda_build) ;; esac
    # cuBLAS and the driver ask each other for functions that older ones lack
    [ "$tool" != memcheck ] || ours=(--ignore-getprocaddress-notfound)
    run "$tool" "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 20 \
        ${ours[@]+"${ours[@]}"} "$bin/tests" --exact "${list[@]}" --test-threads 1
}

step() {
    local model pairs
    for model in ViT-B-32:1024 ViT-B-16:256; do
        pairs=${model#*:} model=${model%:*}
        needs "step-$model" gpu cublas step || continue
        run "step-$model" "$bin/step" --device cuda --json "$out/step-$model.json" \
            "$model" "$pairs" 1 20
    done
}

peers() {
    needs "peers-$1" gpu torch || return
    run "peers-$1" python3 "$scripts/peers.py" "$1" --json "$out/peers-$1.json"
}

# take_turns PART KERNELS...: ours with each choice of kernels and the peers, in turn.
take_turns() {
    local part=$1 round kernels start=$SECONDS
    shift
    needs "$part" gpu || return
    for round in $rounds; do
        for kernels in "$@"; do
            needs "$part-$kernels-$round" gpu cublas ops || continue
            run "$part-$kernels-$round" "$bin/ops" --device cuda --only "$part" \
                --kernels "$kernels" --json "$out/$part-$kernels-$round.json"
        done
        needs "peers-$part-$round" gpu torch || continue
        run "peers-$part-$round" python3 "$scripts/peers.py" "$part" \
            --json "$out/peers-$part-$round.json"
    done
    result "$part" PASS $((SECONDS - start)) "rounds $rounds, each with its own results"
}

for part in "${parts[@]}"; do
    case $part in
        tests) tests ;;
        memcheck | racecheck | initcheck | synccheck) sanitize "$part" ;;
        ops) needs ops gpu cublas ops &&
            run ops "$bin/ops" --device cuda --only rest --json "$out/ops.json" ;;
        pool) take_turns pool hopper int8 portable ;;
        loss) take_turns loss auto portable ;;
        step) step ;;
        ranks) needs ranks gpu cublas nccl ranks &&
            run ranks "$bin/ranks" --device cuda --json "$out/ranks.json" ViT-B-32 1024 1 20 ;;
        peers-*) peers "${part#peers-}" ;;
    esac
done

# section NAME: what the log has of its latest run.
section() {
    awk -v head="=== $1" '$0 == head { text = ""; on = 1; next }
        /^=== / { on = 0 } on { text = text $0 "\n" } END { printf "%s", text }' "$out/log.txt"
}
quoted() { printf '```\n%s\n```\n\n' "$(section "$1" | tail -n "$2")"; }

report() {
    printf '# GPU report, %s\n\n' "$(date -u +%F)"
    echo "- commit: $(head -n 1 "$root/commit" 2>/dev/null || echo unknown)"
    echo "- host: $(uname -sr), $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | uniq)"
    echo "- GPU: $(nvidia-smi --format=csv,noheader \
        --query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit 2>/dev/null ||
        find_gpu)"
    echo "- compiler: $(nvcc --version 2>/dev/null | grep release || echo none)"
    echo "- torch: $(python3 -c 'import torch; print(torch.__version__)' 2>/dev/null || echo none)"
    echo "- compute-sanitizer: ${sanitizer:-none}"
    printf '\n| | what | seconds | |\n|---|---|---|---|\n'
    awk -F'\t' '{ gsub(/\|/, "/"); printf "| %s | %s | %s | %s |\n", $2, $1, $3, $4 }' \
        "$out/results.tsv"
    echo
    if compgen -G "$out/*.json" >/dev/null && command -v python3 >/dev/null; then
        python3 "$scripts/gpu_table.py" "$out"
        echo
    fi
    local name
    for name in $(cut -f1 "$out/results.tsv"); do
        grep -q "^=== $name\$" "$out/log.txt" || continue
        printf '## %s\n\n' "$name"
        case $name in ops | ranks | step-* | *-1) quoted "$name" 100 ;; *) quoted "$name" 30 ;; esac
    done
}
report >"$out/report.md"
failed=$(awk -F'\t' '$2 == "FAIL" { print $1 }' "$out/results.tsv")
echo "$out/report.md: $(wc -l <"$out/results.tsv") results, failed: ${failed:-none}" | tr '\n' ' '
echo
[ -z "$failed" ]
