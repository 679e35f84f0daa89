#!/bin/sh
# Checks the CUDA backend on a machine with a card: builds it, compares every op with the CPU and every model with its reference, and
# lets NVIDIA's compute-sanitizer watch. The last line is "N passed, N failed"; the exit code is 0 only if none failed.
#     tests/gpu.sh                 builds in build-gpu/, then checks
#     tests/gpu.sh BUILD           checks what an existing build folder holds
# The portable code (what cards of other generations run) is checked too, as PTX of compute_86 that the driver compiles.
set -u
cd "$(dirname "$0")/.." || exit 1

passed=0
failed=0
log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT

# check NAME COMMAND...: one test; its output is shown when it fails.
check() {
    name=$1
    shift
    if "$@" > "$log" 2>&1; then
        echo "ok      $name$(sed -n 's/^largest/: largest/p' "$log" | tail -n 1)"
        passed=$((passed + 1))
    else
        echo "FAILED  $name: $*"
        tail -n 25 "$log"
        failed=$((failed + 1))
    fi
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
    exit
}

if [ $# -gt 0 ]; then
    build=$1
else
    build=build-gpu
    . examples/setup.sh
    setup_need_build
    setup_install || { echo "0 passed, 1 failed"; exit 1; }
    command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin
    if ! command -v nvcc > /dev/null; then
        echo "nvcc is missing: install NVIDIA's CUDA toolkit, 12.3 or later (https://developer.nvidia.com/cuda-downloads)" >&2
        echo "0 passed, 1 failed"
        exit 1
    fi
    [ -f $build/build.ninja ] || check "configure" meson setup $build -Dcuda=enabled -Dgpu_arch=native,portable || finish
    check "build" ninja -C $build
fi
backends=$(find "$build/cuda" -name 'libqwenmoe-cuda*.so' | sort)
[ -n "$backends" ] || check "a CUDA backend in $build" false

for library in $backends; do
    kind=$(basename "$library" .so)
    echo "==> $kind: ops"
    "$build/tests/gpu/check_ops" cuda "--library=$library" > "$log" 2>&1
    code=$?
    grep -v ' passed, ' "$log"
    passed=$((passed + $(grep -c '^ok' "$log")))
    failed=$((failed + $(grep -c '^FAILED' "$log")))
    if [ $code != 0 ] && ! grep -q '^FAILED' "$log"; then
        check "$kind: check_ops" false
    fi
    echo "==> $kind: models"
    for model in tests/data/oracle/qwen3 tests/data/oracle/qwen3moe tests/data/oracle/qwen35 tests/data/oracle/qwen35moe \
        tests/data/oracle/qwen3next tests/data/tiny/attention tests/data/tiny/hybrid tests/data/tiny/experts; do
        check "$kind: $(basename $model)" "$build/tests/oracle" $model.gguf $model.expect.gguf --bound 5e-3 \
            --set device=cuda --set "cuda-library=$library"
    done
    check "$kind: the default model" "$build/tests/oracle" examples/model/qwenmoe-py.gguf examples/model/heldout.expect.gguf --bound 1e-2 \
        --set device=cuda --set "cuda-library=$library"
    # One card as two devices: first by layers, then by parts of layers; and experts of two layers on the CPU.
    for model in tests/data/oracle/qwen35 tests/data/oracle/qwen35moe tests/data/tiny/hybrid; do
        for split in layers tensor; do
            check "$kind: $(basename $model) as two devices, $split" "$build/tests/oracle" $model.gguf $model.expect.gguf \
                --bound 5e-3 --set "devices=cuda:0@12G,cuda:0@12G" --set split=$split --set "cuda-library=$library"
        done
    done
    # Sums by kernels, within the programs.
    for way in peer pinned; do
        for model in tests/data/oracle/qwen35moe tests/data/tiny/hybrid; do
            check "$kind: $(basename $model) as two devices, sums by $way" "$build/tests/oracle" $model.gguf $model.expect.gguf \
                --bound 5e-3 --set "devices=cuda:0@12G,cuda:0@12G" --set split=tensor --set exchange=$way --set "cuda-library=$library"
        done
    done
    check "$kind: qwen35moe as four devices, pairs" "$build/tests/oracle" tests/data/oracle/qwen35moe.gguf \
        tests/data/oracle/qwen35moe.expect.gguf --bound 5e-3 --set "devices=cuda:0@12G,cuda:0@12G,cuda:0@12G,cuda:0@12G" \
        --set split=tensor:2 --set exchange=peer --set "cuda-library=$library"
    check "$kind: qwen35moe with experts of two layers on the CPU" "$build/tests/oracle" tests/data/oracle/qwen35moe.gguf \
        tests/data/oracle/qwen35moe.expect.gguf --bound 5e-3 --set devices=cuda:0,cpu --set host-experts=2 \
        --set "cuda-library=$library"
    check "$kind: tiny experts of three layers on the CPU, some cached" "$build/tests/oracle" tests/data/tiny/experts.gguf \
        tests/data/tiny/experts.expect.gguf --bound 5e-3 --set devices=cuda:0,cpu --set host-experts=3 --set expert-cache=200000 \
        --set "cuda-library=$library"
    check "$kind: the default model with experts of three layers on the CPU" "$build/tests/oracle" examples/model/qwenmoe-py.gguf \
        examples/model/heldout.expect.gguf --bound 1e-2 --set devices=cuda:0,cpu --set host-experts=3 --set "cuda-library=$library"
    check "$kind: sessions, jobs, memory" "$build/tests/gpu/check_card" cuda "$library" tests/data/tiny/hybrid.gguf
done

if command -v compute-sanitizer > /dev/null; then
    echo "==> compute-sanitizer"
    first=$(echo "$backends" | head -n 1)
    for tool in memcheck initcheck; do
        for model in attention hybrid; do
            check "$tool: $model" compute-sanitizer --tool $tool --error-exitcode 1 "$build/tests/oracle" tests/data/tiny/$model.gguf \
                tests/data/tiny/$model.expect.gguf --bound 5e-3 --set device=cuda --set "cuda-library=$first"
        done
    done
    # Thousands of times slower: one op of each kind.
    for op in 'glu Q4_K' 'project_add Q4_K' 'experts Q4_K Q4_K 4' 'attend 3/3' 'delta 2/4 x 32'; do
        check "racecheck: $op" compute-sanitizer --tool racecheck --error-exitcode 1 "$build/tests/gpu/check_ops" cuda "$op" "--library=$first"
    done
else
    check "compute-sanitizer is installed" false
fi

# 20 GB of weights on two devices of 12 GB each, which is only possible with each split's part on its own.
whole() { # SPLIT
    "$build/examples/qwenmoe/qwenmoe" bench --model "$log.35b.gguf" --cuda-library "$(echo "$backends" | tail -n 1)" \
        --devices cuda:0@12G,cuda:0@12G --split "$1" --exchange peer --prompt 512 --generate 32 --repeat 1
}
if [ "$(df -P --output=avail "$(dirname "$log")" 2> /dev/null | tail -n 1)" -gt 24000000 ] 2> /dev/null; then
    check "a model of 35B-A3B's shape" python3 examples/bench/random_model.py 35b-a3b "$log.35b.gguf"
    check "35B-A3B on two devices of 12 GB, layers" whole layers
    check "35B-A3B on two devices of 12 GB, tensor" whole tensor
    rm -f "$log.35b.gguf"
else
    echo "left out: 35B-A3B on two devices of 12 GB, which takes 24 GB in $(dirname "$log") (TMPDIR)"
fi

# Ranks that sum by NCCL on one card: each has to take itself for another machine. The text is that of one process.
nccl_ranks() { # COUNT
    tell="--model $PWD/tests/data/oracle/qwen35moe.gguf --cuda-library $(echo "$backends" | head -n 1) --kv-type f32 --temperature 0"
    # shellcheck disable=SC2086
    "$build/examples/qwenmoe/qwenmoe" run $tell --device cuda --quiet --answer-tokens 8 "one two three" > "$log.one" 2>&1
    # shellcheck disable=SC2016,SC2086
    NCCL_SOCKET_IFNAME=lo mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$1" sh -c \
        'NCCL_HOSTID=host$OMPI_COMM_WORLD_RANK exec "$0" "$@"' "$build/examples/launch/qwenmoe-launch" qwenmoe run $tell \
        --device cuda --split tensor --verbose --answer-tokens 8 "one two three" > "$log.ranks" 2> "$log.said"
    if grep -q "sum through the host" "$log.said"; then
        grep "sum through the host" "$log.said"
        return 1
    fi
    diff "$log.one" "$log.ranks"
}
if command -v mpirun > /dev/null; then
    check "NCCL: two ranks on one card" nccl_ranks 2
    check "NCCL: four ranks on one card" nccl_ranks 4
else
    check "mpirun is installed" false
fi
finish
