#!/bin/sh
# The package for a library that is installed: without a compiler, named at installation, at run time, or found by the system. And
# the source package: it has the library's sources in it.
#   check_installed.sh LIBRARY PYTHON     the library's file, and a Python in whose environment packages can be built
set -eu
library=$1 python=$2
PATH=$(dirname "$python"):$PATH # for its Meson
top=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ask='import qwenmoe; print(qwenmoe.library().path)'

says() { # WHAT EXPECTED COMMAND...
    what=$1 expected=$2
    shift 2
    said=$("$@") || { echo "$what: fails"; exit 1; }
    [ "$said" = "$expected" ] || { echo "$what: '$said' instead of '$expected'"; exit 1; }
}
CC=/bin/false CXX=/bin/false QWENMOE_LIBRARY=$library "$python" -m pip install -q --no-deps --no-build-isolation \
    --target "$work/site" "$top/bindings/python"
unset QWENMOE_LIBRARY
export PYTHONPATH="$work/site"
cd "$work"
says "named at installation" "$library" "$python" -c "$ask"
[ -z "$(find site -name '*.so*')" ] || { echo "a library was installed"; exit 1; }
cp "$library" "$work/other.so"
says "named in the environment" "$work/other.so" env QWENMOE_LIBRARY="$work/other.so" "$python" -c "$ask"
rm site/qwenmoe/library.txt
cp "$library" libqwenmoe.so.0
says "the system's" libqwenmoe.so.0 env LD_LIBRARY_PATH="$work" "$python" -c "$ask"

[ -e "$top/.git" ] || exit 0 # source packages are made from what git knows
cd "$top/bindings/python"
QWENMOE_LIBRARY=$library "$python" -c 'import mesonpy, sys; mesonpy.build_sdist(sys.argv[1])' "$work" > "$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }
mkdir "$work/source"
tar -xzf "$work"/qwenmoe-*.tar.gz -C "$work/source" --strip-components 1
for part in include/qwenmoe.h lib/qwenmoe.map meson.build subprojects/jansson.wrap; do
    cmp "$top/$part" "$work/source/subprojects/libqwenmoe/$part"
done
meson setup "$work/build" "$work/source" -Dlibqwenmoe:cuda=disabled > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
