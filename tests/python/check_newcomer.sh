#!/bin/sh
# bindings/python/README.md as a newcomer meets it: its blocks marked sh and python are run as they are written, in the copy of a
# fresh clone; then what was installed has to find everything it needs in itself and in libc.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset QWENMOE_LIBRARY

mkdir "$work/clone"
for part in LICENSE bindings cuda examples include lib meson.build meson.options meson_options.txt; do
    cp -a "$top/$part" "$work/clone/"
done
mkdir "$work/clone/subprojects"
cp -a "$top"/subprojects/*.wrap "$top/subprojects/packagefiles" "$work/clone/subprojects/"
for language in sh python; do
    awk -v start="^\`\`\`$language\$" '$0 ~ start { block = 1; next } /^```/ { block = 0 } block' \
        "$top/bindings/python/README.md" > "$work/commands.$language"
    [ -s "$work/commands.$language" ] || { echo "README.md has no block of $language"; exit 1; }
done
printf 'python "%s"\n' "$work/commands.python" >> "$work/commands.sh"
(cd "$work/clone" && sh -e "$work/commands.sh") > "$work/out" 2>&1 || { cat "$work/out"; exit 1; }
if ! tail -n 1 "$work/out" | grep -qE '^[0-9]+$'; then
    cat "$work/out"
    echo "the program in README.md did not come to its end"
    exit 1
fi

package=$(dirname "$(find "$work/clone/.venv" -name libqwenmoe.so)")
ldd "$package/libqwenmoe.so" > "$work/needed"
if grep -vE "$package/|linux-vdso|/(libc|libm|libdl|libpthread|ld-linux-x86-64|libgcc_s)\.so" "$work/needed"; then
    echo "the package needs what is not in it"
    exit 1
fi
[ -f "$package/py.typed" ] || { echo "py.typed is not installed"; exit 1; }
