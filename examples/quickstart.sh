#!/bin/sh
# From a fresh clone to Python written by the model that lies in this repository: installs what is missing, builds in ./build, and lets
# the model continue a function, fill a gap and answer a question. A second run only does the last part.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

setup_need_build
setup_install

program=build/examples/qwenmoe/qwenmoe
log=build/quickstart.log
mkdir -p build
if [ ! -f build/build.ninja ]; then
    echo "==> configuring ./build"
    meson setup build --buildtype=release -Dtests=false >"$log" 2>&1 || { cat "$log"; exit 1; }
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

show "qwenmoe run 'def read_lines(path):'"
$program run --echo --seed 7 --answer-tokens 96 'def read_lines(path):
    """Return the lines of a file, without their line ends."""
'
show "qwenmoe fill --whole   (the gap is at <FILL>)"
printf 'def average(values):\n    """Return the mean of a list of numbers."""\n    total = <FILL>\n    return total / len(values)\n' |
    $program fill --whole --answer-tokens 48
show "qwenmoe run --chat 'Write a Python function that ...'"
$program run --chat --thoughts --seed 3 --answer-tokens 160 \
    'Write a Python function that counts how often each word occurs in a text.'
printf '\nNow yours: %s chat    (%s --help lists the rest)\n' "$program" "$program"
