#!/bin/sh
# The library's binary interface is the stored one: functions, their types, nothing else. Needs libabigail and a library with
# debugging information built by gcc. Another compiler describes the same types in other words, so only gcc's are compared.
#   check_dump.sh LIBRARY           compares
#   check_dump.sh LIBRARY --write   stores the dump anew, after functions were added
set -eu
here=$(dirname "$0")
include=$here/../../include
stored=$here/libqwenmoe.abi

if [ "${2:-}" = --write ]; then
    abidw --exported-interfaces-only --headers-dir "$include" --drop-private-types --no-corpus-path \
        --no-comp-dir-path --no-show-locs --no-elf-needed --type-id-style hash --out-file "$stored" "$1"
else
    abidiff --exported-interfaces-only --headers-dir2 "$include" --drop-private-types "$stored" "$1"
    echo "same as stored"
fi
