#!/usr/bin/env bash
# Brings the peers of `scripts/peers.py` to a host without network:
#
#   scripts/peer_wheels.sh fetch DIR [MIB]       here: downloads what peer_wheels.txt names and
#                                                fills DIR/load-01, DIR/load-02, ...
#   scripts/peer_wheels.sh install DIR TARGET    there: unpacks all loads below DIR into TARGET,
#                                                which belongs into PYTHONPATH
#
# A load has at most MIB (default 40), for hosts that take only so much at a time; a larger wheel is
# cut. The first ones are of use alone; a wheel whose parts have not all come is left out and named.
# PYTHON is the version there (default 3.12); the host needs PyTorch for CUDA 13.
set -euo pipefail
usage="usage: peer_wheels.sh fetch DIR [MIB] | install DIR TARGET"
: "${1:?$usage}" "${2:?$usage}"
list=$(dirname "$0")/peer_wheels.txt

fetch() {
    local to=$1 most=$(($2 << 20)) load=1 room=$(($2 << 20)) platforms=() n name wheel size part
    for n in 17 24 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
    mkdir -p "$to/wheels"
    rm -rf "$to"/load-*
    grep -v '^#' "$list" | while read -r name; do
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$to/wheels" \
            --only-binary=:all: --implementation cp --python-version "${PYTHON:-3.12}" \
            "${platforms[@]}" --platform manylinux2014_x86_64 "$name" ||
            { echo "$name: cannot be had" >&2; continue; }
        # a file's name has _ where the package's has -
        wheel=$(ls "$to/wheels" | grep -i "^$(tr - _ <<<"${name%%==*}")-" | head -n 1)
        size=$(stat -c %s "$to/wheels/$wheel")
        mkdir -p "$to/cut"
        if [ "$size" -le "$most" ]; then ln "$to/wheels/$wheel" "$to/cut/"
        else split -b "$most" -d --additional-suffix="-of-$(((size + most - 1) / most))" \
            "$to/wheels/$wheel" "$to/cut/$wheel.part-"; fi
        for part in "$to"/cut/*; do
            size=$(stat -c %s "$part")
            if [ "$size" -gt "$room" ]; then load=$((load + 1)) room=$most; fi
            room=$((room - size))
            mkdir -p "$to/load-$(printf %02d $load)"
            mv "$part" "$to/load-$(printf %02d $load)/"
        done
    done
    rm -rf "$to/cut"
    du -ma "$to"/load-*
}

install() {
    local from=$1 to=$2 wheels first name count parts
    wheels=$(mktemp -d)
    find "$from" -path '*/load-*/*.whl' -exec ln -s {} "$wheels/" \;
    for first in $(find "$from" -path '*/load-*' -name '*.part-00-of-*'); do
        name=$(basename "${first%.part-*}") count=${first##*-of-}
        mapfile -t parts < <(find "$from" -path '*/load-*' -name "$name.part-*" -printf '%f\t%p\n' |
            sort | cut -f2)
        if [ ${#parts[@]} -eq "$count" ]; then cat "${parts[@]}" >"$wheels/$name"
        else echo "$name: ${#parts[@]} of $count parts are here" >&2; fi
    done
    python3 -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check \
        --target "$to" --upgrade "$wheels"/*.whl
    rm -rf "$wheels"
}

from=$(realpath -m "$2")
case $1 in
    fetch) fetch "$from" "${3:-40}" ;;
    install) install "$from" "${3:?$usage}" ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
