#!/bin/sh
# What `meson install` puts into a prefix is enough to use it: the program runs from there, a C program builds with pkg-config
# against the shared and against the static library, a C++ program with CMake (also when the prefix was moved, and has only the
# static one), and `ninja uninstall` leaves nothing.
#   check_install.sh BUILD PREFIX     BUILD is configured with that prefix and -Ddefault_library=both
set -eu
build=$1 prefix=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^#define QM_VERSION_[A-Z]* //p' "$here/../../include/qwenmoe.h" | paste -sd.)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }

rm -rf "$prefix"
meson install -C "$build" > "$work/install.log" 2>&1 || { cat "$work/install.log"; exit 1; }
for file in bin/qwenmoe include/qwenmoe.h share/man/man1/qwenmoe.1 share/qwenmoe/qwenmoe-py.gguf \
    share/bash-completion/completions/qwenmoe share/nvim/site/pack/qwenmoe/start/qwenmoe/plugin/qwenmoe.lua; do
    [ -s "$prefix/$file" ] || fail "$file is not installed"
done
if pkg-config --exists libmicrohttpd; then
    [ "$("$prefix/bin/qwenmoe-server" --version)" = "qwenmoe-server $version" ] || fail "the server is not installed"
    [ -s "$prefix/share/man/man1/qwenmoe-server.1" ] || fail "the server's manual is not installed"
fi
[ "$("$prefix/bin/qwenmoe" --version)" = "qwenmoe $version" ] || fail "the installed program does not say that it is $version"
"$prefix/bin/qwenmoe" run -q --temperature 0 --answer-tokens 4 'import' >"$work/said" ||
    fail "the installed program does not find its model"
[ -s "$work/said" ] || fail "the installed program says nothing"
man -l "$prefix/share/man/man1/qwenmoe.1" > "$work/page" 2> "$work/complaints"
grep -q 'OPTIONS OF THE LIBRARY' "$work/page" || fail "the manual does not render"
[ ! -s "$work/complaints" ] || { cat "$work/complaints"; fail "man complains about the manual"; }

libraries=$(dirname "$(find "$prefix" -name libqwenmoe.so)")
[ -f "$libraries/libqwenmoe.so.$version" ] || fail "there is no libqwenmoe.so.$version"
readelf -d "$libraries/libqwenmoe.so.$version" | grep -q 'SONAME.*\[libqwenmoe\.so\.0\]' ||
    fail "the SONAME is not libqwenmoe.so.0"
readelf -d "$prefix/bin/qwenmoe" | grep -q 'NEEDED.*\[libqwenmoe\.so\.0\]' || fail "the program does not use the shared library"

PKG_CONFIG_PATH=$libraries/pkgconfig
export PKG_CONFIG_PATH
[ "$(pkg-config --modversion qwenmoe)" = "$version" ] || fail "pkg-config gives another version"
model=$prefix/share/qwenmoe/qwenmoe-py.gguf
# shellcheck disable=SC2046  # flags are separate words
cc "$here/../../examples/embed.c" $(pkg-config --cflags --libs qwenmoe) -o "$work/shared"
LD_LIBRARY_PATH=$libraries "$work/shared" "$model" 'import os' > "$work/shared.out"
# shellcheck disable=SC2046
cc "$here/../../examples/embed.c" $(pkg-config --cflags qwenmoe) "$libraries/libqwenmoe.a" \
    $(pkg-config --static --libs qwenmoe | tr ' ' '\n' | grep -vx -e -lqwenmoe) -o "$work/static"
readelf -d "$work/static" | grep -q libqwenmoe && fail "the static program needs the shared library"
"$work/static" "$model" 'import os' > "$work/static.out"
[ -s "$work/shared.out" ] && [ -s "$work/static.out" ] || fail "a program built with pkg-config says nothing"

# CMake finds the library by find_package, in C++; the program says what the installed one does.
cmake_build() { # PREFIX NAME SHARED: 1 or 0
    cmake -S "$here/consumer" -B "$work/$2" -DCMAKE_PREFIX_PATH="$1" > "$work/cmake.log" 2>&1 &&
        cmake --build "$work/$2" >> "$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; exit 1; }
    needed=$(readelf -d "$work/$2/consumer" | grep -c 'NEEDED.*\[libqwenmoe\.so\.0\]') || true
    [ "$needed" = "$3" ] || fail "$2: needs the shared library $needed times"
    [ "$("$work/$2/consumer" "$model" 'import os')" = "$said" ] || fail "$2: does not say '$said'"
}
said=$("$prefix/bin/qwenmoe" run -q --temperature 0 --answer-tokens 8 'import os')
cmake_build "$prefix" cmake 1
cp -r "$prefix" "$work/moved"
find "$work/moved" -name 'libqwenmoe.so*' -delete
cmake_build "$work/moved" cmake-static 0

ninja -C "$build" uninstall > "$work/uninstall.log" 2>&1 || { cat "$work/uninstall.log"; exit 1; }
left=$(find "$prefix" ! -type d 2> /dev/null || true)
[ -z "$left" ] || fail "left after uninstall: $left"
