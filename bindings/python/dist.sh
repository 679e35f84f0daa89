#!/bin/sh
# For a source package: puts files in the place of the links to the rest of the repository. Run by `meson dist`.
set -eu
rm -rf "$MESON_DIST_ROOT/LICENSE" "$MESON_DIST_ROOT/subprojects"
mkdir -p "$MESON_DIST_ROOT/subprojects/libqwenmoe"
cd "$MESON_SOURCE_ROOT/../.."
cp LICENSE "$MESON_DIST_ROOT/"
git archive HEAD LICENSE README.md cuda include lib meson.build meson.options subprojects |
    tar -x -C "$MESON_DIST_ROOT/subprojects/libqwenmoe"
