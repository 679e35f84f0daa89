#!/bin/sh
# The library exports exactly the functions of symbols.txt, and these are those of the header. A new function of the interface is
# added to both by hand; one that is missing from either is a mistake.
#   check_symbols.sh LIBRARY
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
LC_ALL=C
export LC_ALL

nm -D --defined-only "$1" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort > "$work/exported"
sed -n 's/^QM_API .*[ *]\(qm_[a-z_]*\)(.*/\1/p' "$here/../../include/qwenmoe.h" | sort > "$work/declared"
diff "$here/symbols.txt" "$work/exported" || { echo "< symbols.txt   > exported by $1"; exit 1; }
diff "$here/symbols.txt" "$work/declared" || { echo "< symbols.txt   > declared in the header"; exit 1; }
echo "$(wc -l < "$work/exported") functions"
