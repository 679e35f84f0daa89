#!/bin/sh
# From a fresh clone to Python written by the model that lies in this repository: installs what is missing, builds in ./build, and
# lets the model continue a function, fill a gap and answer a question. A second run only does the last part.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

setup_need_build
setup_install

program=build/examples/qwenmoe/qwenmoe
log=build/quickstart.log
mkdir -p build
if [ ! -f build/build.ninja ]; then
    # The CUDA backend only for cards that are here: compiling it takes minutes.
    cuda=-Dcuda=disabled
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU' && { command -v nvcc || [ -x /usr/local/cuda/bin/nvcc ]; } >/dev/null; then
        cuda='-Dcuda=enabled -Dgpu_arch=native'
    fi
    echo "==> configuring ./build ($cuda)"
    meson setup build --buildtype=release -Dtests=false $cuda >"$log" 2>&1 || { cat "$log"; exit 1; }
fi
echo "==> building"
if [ -t 1 ]; then
    ninja -C build # shows its progress in one line
else
    ninja -C build >"$log" 2>&1 || { cat "$log"; exit 1; }
fi

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
fi
show() {
    printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
}

show "qwenmoe run --echo 'class Stack: ...'"
$program run --echo --seed 1 --temperature 0.5 --repetition-penalty 1.1 --penalty-window 64 --answer-tokens 60 'class Stack:
    """A stack of items."""

    def __init__(self):
        self.items = []

    def push(self, item):
'
show "qwenmoe fill --whole < size.py    (the gap is bold)"
printf '%s\n' 'import os' '' 'def size_of(path):' '    """Return the size of all files under a folder."""' '    total = 0' \
    '    for root, folders, files in os.walk(path):' '        <FILL>' '    return total' |
    $program fill --whole
show "qwenmoe run --chat 'Write a Python function that returns the absolute path ...'    (thoughts are dim)"
$program run --chat --thoughts --seed 1 --temperature 0.3 --answer-tokens 200 \
    'Write a Python function that returns the absolute path of a file.'
printf '\nNow yours: %s chat    (%s --help lists the rest)\n' "$program" "$program"
