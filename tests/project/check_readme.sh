#!/bin/sh
# Runs the shell commands of README.md: each block marked ```sh, in order, in one shell, in a folder that looks like a fresh clone
# with the program already built (the
# two commands that install and build are the suite and its caller: only their existence is checked).
#   check_readme.sh PREFIX      the prefix in which the library is installed
set -eu
prefix=$1
top=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

awk '/^```sh$/ { block = 1; next } /^```/ { block = 0 } block' "$top/README.md" > "$work/commands"
[ -s "$work/commands" ] || { echo "README.md has no \`\`\`sh block"; exit 1; }
awk '/^```c$/ { block = 1; next } /^```/ { block = 0 } block' "$top/README.md" > "$work/readme.c"
cmp "$work/readme.c" "$top/examples/embed.c" || { echo "the program in README.md is not examples/embed.c"; exit 1; }

PATH=$prefix/bin:$PATH
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name qwenmoe.pc)")
LD_LIBRARY_PATH=$(dirname "$PKG_CONFIG_PATH")
export PATH PKG_CONFIG_PATH LD_LIBRARY_PATH
mkdir "$work/clone"
cp -r "$top/examples" "$top/tests" "$work/clone/"
cd "$work/clone"
count=0
while read -r line; do
    case $line in
    '' | '#'*) continue ;;
    examples/quickstart.sh | tests/run.sh) [ -x "$line" ] || { echo "$line cannot be run"; exit 1; } ;;
    git\ clone* | cd\ * | meson\ * | ninja\ *) ;; # what a reader does once
    *)
        sh -c "$line" > "$work/out" 2>&1 < /dev/null || { echo "\$ $line"; cat "$work/out"; exit 1; }
        count=$((count + 1))
        ;;
    esac
done < "$work/commands"
echo "$count commands"
