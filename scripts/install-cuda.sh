#!/usr/bin/env bash
# Installs what feature `cuda` is built with (the CUDA 13.0 compiler, a disassembler, libclang) from
# PyPI into a folder (default: .cuda), without root: 130 MB to download, 350 MB on disk. Prints the
# line that makes cargo find it.
#
#   eval "$(scripts/install-cuda.sh)" && cargo build --release --features cuda
#
# The versions are pinned together: a newer nvvm or crt writes PTX that this ptxas refuses.
set -euo pipefail
folder=$(realpath -m "${1:-"$(dirname "$0")/../.cuda"}")
home=$folder/nvidia/cu13
if [ ! -e "$home/complete" ]; then
    python3 -m pip install --quiet --no-compile --disable-pip-version-check --target "$folder" \
        'cuda-toolkit[nvcc,cccl]==13.0.3.0' 'nvidia-cuda-cuobjdump==13.2.86' \
        'nvidia-cuda-nvdisasm==13.2.86' 'libclang==18.1.1' >&2
    ln -sfn lib "$home/lib64" # nvcc looks for its runtime in lib64; the wheels have lib
    touch "$home/complete"
fi
echo "export CUDA_HOME='$home' LIBCLANG_PATH='$folder/clang/native' PATH='$home/bin':\"\$PATH\""
