#!/bin/sh
# The library inside another Meson project: a folder with the repository as subprojects/qwenmoe configures, builds, runs, and
# installs the library with its own program, but none of our programs or data. Not optimized, so that it compiles in less time.
#   check_subproject.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }

mkdir -p "$work/parent/subprojects"
cp "$here/parent/meson.build" "$top/examples/embed.c" "$work/parent/"
ln -s "$top" "$work/parent/subprojects/qwenmoe"
# pkg-config must not find one that is installed.
PKG_CONFIG_PATH='' meson setup "$work/build" "$work/parent" --prefix="$work/prefix" --buildtype=plain -Dqwenmoe:cuda=disabled \
    --force-fallback-for=qwenmoe > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
meson install -C "$work/build" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
libraries=$(dirname "$(find "$work/prefix" -name libqwenmoe.so)")
LD_LIBRARY_PATH=$libraries "$work/prefix/bin/parent" "$top/tests/data/oracle/qwen35moe.gguf" 'import os' > "$work/said"
[ -s "$work/said" ] || fail "the program says nothing"
[ "$(ls "$work/prefix/bin")" = parent ] || fail "installed with it: $(ls "$work/prefix/bin")"
[ "$(ls "$work/prefix/share")" = cmake ] || fail "installed with it: $(find "$work/prefix/share" -type f)"
