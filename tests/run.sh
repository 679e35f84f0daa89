#!/bin/sh
# Sets up what the tests need and runs the whole suite. The last line is "N passed, N failed"; exits with 0 only if none failed.
#     tests/run.sh                 everything, about a quarter of an hour on two cores
#     tests/run.sh gcc fuzz        only these tiers
# Tiers, each with a build folder of its own under build-tests/, which a second run uses again:
#     gcc      release build without a warning, all tests, installation, README's commands, ABI
#     nvim     the Neovim plugin in the system's Neovim, with the library of tier gcc
#     server   qwenmoe-server of the gcc build: its README, OpenAI's and Anthropic's clients, requests made from its description,
#              its page in Chromium
#     clang    the same build by clang, the tests of its parts
#     address  AddressSanitizer and UndefinedBehaviorSanitizer, all tests but the long ones
#     thread   ThreadSanitizer, the tests that use threads
#     fuzz     libFuzzer: each target runs a fixed number of times from its seeds
#     haswell  built for one machine instead of any
#     python   the Python package: its tests, on the library of gcc; its README's commands, which build and install it
#     cuda     the CUDA backend compiled for one kind of card, and opened where there is none; left out where there is no nvcc
set -u
cd "$(dirname "$0")/.." || exit 1
. examples/setup.sh

tiers=${*:-gcc python nvim server clang address thread fuzz haswell cuda}
builds=$PWD/build-tests
results=$builds/results # one line a test: "ok NAME" or "failed NAME"

setup_need_build
setup_need 'pkg-config --exists cmocka' libcmocka-dev
setup_need 'pkg-config --exists libmicrohttpd' libmicrohttpd-dev
setup_need 'command -v clang' clang
fuzz_nothing='int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }'
setup_need "echo '$fuzz_nothing' | clang -fsanitize=fuzzer,address -x c - -o /dev/null" libclang-rt-dev
setup_need 'command -v g++' g++
setup_need 'command -v cmake' cmake make
setup_need 'command -v abidiff' abigail-tools
setup_need 'command -v xz' xz-utils
setup_need 'command -v python3' python3
setup_need 'python3 -c "import ensurepip, venv"' python3-venv
setup_need 'command -v nvim' neovim
setup_need 'command -v man' man-db
setup_need 'command -v groff' groff-base
case " $tiers " in
*" server "*)
    setup_need 'command -v curl' curl
    setup_need 'command -v chromium-headless-shell || command -v chromium' chromium-headless-shell fonts-dejavu-core
    ;;
esac
setup_install || { echo "0 passed, 1 failed"; exit 1; }

mkdir -p "$builds"
: > "$results"
started=$(date +%s)
say() { printf '==> %4d s  %s\n' "$(($(date +%s) - started))" "$*"; }

# check NAME COMMAND...: one test, passed when the command succeeds; its output is shown when it does not.
check() {
    name=$1
    shift
    if timeout 1800 "$@" > "$builds/check.log" 2>&1; then # what hangs fails
        echo "ok      $name"
        echo "ok $name" >> "$results"
    else
        echo "FAILED  $name: $*"
        tail -n 40 "$builds/check.log"
        echo "failed $name" >> "$results"
        return 1
    fi
}

# What the tests of a suite need, of all that a build folder can build.
needed() { # TIER SUITE
    meson introspect --tests --targets "$builds/$1" | python3 -c '
import json, os, sys
build, suite, facts = *sys.argv[1:], json.load(sys.stdin)
tests = [test for test in facts["tests"] if suite in [name.split(":")[-1] for name in test["suite"]]]
wanted = {target for test in tests for target in test["depends"]} | {test["cmd"][0] for test in tests}
for target in facts["targets"]:
    if target["id"] in wanted or target["filename"][0] in wanted:
        print(os.path.relpath(target["filename"][0], build))' "$builds/$1" "$2"
}

# build TIER COMPILER OPTION...: configures build-tests/TIER and builds $targets of it, what the tests of $suite need, or all. A
# failure counts as a failed test.
targets= suite=
build() {
    tier=$1 compiler=$2 wanted=$targets
    shift 2
    say "$tier: building"
    [ -f "$builds/$tier/build.ninja" ] ||
        check "$tier: configure" env CC="$compiler" meson setup "$builds/$tier" -Dwerror=true "$@" || return 1
    [ -z "$suite" ] || wanted=$(needed "$tier" "$suite")
    targets= suite=
    check "$tier: build" ninja -C "$builds/$tier" $wanted || return 1
}

# run_tests TIER ARGUMENT...: all of Meson's tests, or those that the arguments pick.
run_tests() {
    tier=$1
    shift
    say "$tier: tests"
    rm -f "$builds/$tier/meson-logs/testlog.json"
    meson test -C "$builds/$tier" --print-errorlogs "$@" > "$builds/$tier.log" 2>&1
    code=$?
    [ $code = 0 ] || grep -v ' OK  ' "$builds/$tier.log"
    python3 - "$builds/$tier/meson-logs/testlog.json" "$tier" >> "$builds/last" << 'END' || check "$tier: tests" false
import json, sys
for line in open(sys.argv[1]):
    test = json.loads(line)
    word = {"OK": "ok", "SKIP": "skipped", "EXPECTEDFAIL": "ok"}.get(test["result"], "failed")
    print(f'{word} {sys.argv[2]}: {test["name"].split(" / ")[-1].split(":")[-1]} ({test["duration"]:.1f} s)')
END
    sed 's/^ok /ok      /; s/^failed /FAILED  /; s/^skipped /skipped /' "$builds/last"
    cat "$builds/last" >> "$results"
    [ $code = 0 ] || grep -q '^failed' "$builds/last" || check "$tier: meson test" false
    rm -f "$builds/last"
}

# Debugging information costs no speed, and the ABI dump is made from it.
build_gcc() {
    build gcc gcc --buildtype=release -Dcuda=disabled -Ddebug=true -Ddefault_library=both --prefix="$builds/prefix"
}

tier_gcc() {
    build_gcc || return
    run_tests gcc
    check "gcc: ABI" tests/abi/check_dump.sh "$builds/gcc/lib/libqwenmoe.so"
    check "gcc: install" tests/project/check_install.sh "$builds/gcc" "$builds/prefix"
    check "gcc: subproject" tests/project/check_subproject.sh
    meson install -C "$builds/gcc" > "$builds/install.log" 2>&1
    check "gcc: README" tests/project/check_readme.sh "$builds/prefix"
}

tier_python() {
    build_gcc || return
    say "python: tests"
    python=$builds/python/bin/python library=$builds/gcc/lib/libqwenmoe.so.0
    if ! [ -f "$builds/python/ready" ]; then
        check "python: environment" python3 -m venv --clear "$builds/python" || return
        check "python: packages" "$python" -m pip install -q numpy pytest mypy meson meson-python ninja || return
        touch "$builds/python/ready"
    fi
    check "python: pytest" env QWENMOE_LIBRARY="$library" PYTHONPATH="$PWD/bindings/python" PYTHONDONTWRITEBYTECODE=1 \
        "$python" -m pytest -q -p no:cacheprovider tests/python
    check "python: types" env MYPYPATH=bindings/python "$python" -m mypy --strict --cache-dir="$builds/python/mypy" -p qwenmoe
    check "python: installed library" tests/python/check_installed.sh "$library" "$python"
    check "python: README" tests/python/check_newcomer.sh
}

tier_nvim() {
    build_gcc || return
    meson install -C "$builds/gcc" > "$builds/install.log" 2>&1
    say "nvim: tests"
    log=$builds/nvim.log
    python3 -B tests/nvim/check_plugin.py "$builds/prefix" > "$log" 2>&1
    code=$?
    [ $code = 0 ] && grep -E '^(ok|    )' "$log" || cat "$log"
    sed -n 's/^ok /ok nvim: /p; s/^FAILED /failed nvim: /p' "$log" >> "$results"
    [ $code = 0 ] || grep -q '^FAILED' "$log" || check "nvim: tests" false
}

tier_server() {
    build_gcc || return
    say "server: installing and running its clients"
    python=$builds/clients/bin/python
    [ -x "$python" ] || check "server: environment" python3 -m venv "$builds/clients" || return
    check "server: packages" "$python" -m pip install -q -r tests/server/requirements.txt || return
    check "server: install" meson install -C "$builds/gcc"
    check "server: README" tests/server/check_readme.sh "$builds/prefix"
    for name in clients schema page; do
        check "server: $name" env QWENMOE_SERVER="$builds/gcc/examples/server/qwenmoe-server" "$python" "tests/server/test_$name.py"
    done
}

tier_clang() {
    build clang clang --buildtype=release -Dcuda=disabled || return
    run_tests clang --suite unit --suite ops --suite oracle --no-suite long
}

tier_address() {
    build address gcc --buildtype=debugoptimized -Dcuda=disabled -Db_sanitize=address,undefined || return
    run_tests address --timeout-multiplier 4 --no-suite long
}

tier_thread() {
    suite=threads
    build thread gcc --buildtype=debugoptimized -Dcuda=disabled -Db_sanitize=thread || return
    run_tests thread --no-rebuild --timeout-multiplier 8 --suite threads
}

tier_fuzz() {
    targets=fuzzers
    build fuzz clang --buildtype=debugoptimized -Dcuda=disabled -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
        -Dc_args=-fsanitize=fuzzer-no-link || return
    say "fuzz: running"
    for target in "$builds"/fuzz/tests/fuzz/fuzz_*; do
        [ -x "$target" ] && [ ! -d "$target" ] || continue
        stem=$(basename "$target")
        mkdir -p "$builds/corpus/$stem"
        check "fuzz: $stem" "$target" -runs=20000 -max_total_time=30 -rss_limit_mb=4096 -artifact_prefix="$builds/$stem-" \
            "$builds/corpus/$stem" "tests/fuzz/corpus/${stem#fuzz_}"
    done
}

tier_haswell() {
    build haswell gcc --buildtype=release -Dcuda=disabled -Dmarch=haswell -Dtests=false
}

tier_cuda() {
    if ! command -v nvcc > /dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
        say "cuda: left out, as there is no nvcc (NVIDIA's CUDA toolkit, 12.3 or later)"
        return
    fi
    # One target and no optimization: compiling takes long, and no card runs it here.
    build cuda gcc --buildtype=debug -Dcuda=enabled -Dgpu_arch=90a -Dtests=false || return
    library=$builds/cuda/cuda/libqwenmoe-cuda.so
    check "cuda: symbols" tests/project/check_backend.sh "$library"
    check "cuda: without a card" tests/project/check_no_card.sh "$builds/cuda/examples/qwenmoe/qwenmoe" "$library" \
        tests/data/oracle/qwen35moe.gguf
}

for tier in $tiers; do
    case $tier in
    gcc | python | nvim | server | clang | address | thread | fuzz | haswell | cuda) "tier_$tier" ;;
    *) check "there is no tier $tier" false ;;
    esac
done

say "done"
grep '^failed' "$results" | sed 's/^failed/FAILED /'
passed=$(grep -c '^ok' "$results")
failed=$(grep -c '^failed' "$results")
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
