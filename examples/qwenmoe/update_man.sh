#!/bin/sh
# Keeps the manuals' sections on the library's options as the library's own table has it.
#   update_man.sh PROGRAM          shows what differs; fails if anything does
#   update_man.sh PROGRAM --write  writes the sections anew
set -eu
program=$1
here=$(dirname "$0")
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$program" options > "$work/table"
# Rows of one scope need not stand together in the table; in the manual they do.
for scope in model session sampling; do
    awk -F '\t' -v scope="$scope" '
        BEGIN {
            title["model"] = "Of the model"
            title["session"] = "Of the session"
            title["sampling"] = "Of sampling and of the answer"
        }
        $2 != scope { next }
        { gsub(/\\/, "\\e"); gsub(/-/, "\\-") }
        !started++ { print ".SS " title[scope] }
        {
            range = $4 == "" ? "" : "; " $4
            print ".TP\n.BI \\-\\-" $1 " \" " $3 "\"\n" $6 " (default " ($5 == "" ? "none" : $5) range ")."
        }' "$work/table"
done > "$work/section"
# The section stands between two comments; the rest of a page stays as it is.
for page in "$here/qwenmoe.1" "$here/../server/qwenmoe-server.1"; do
    awk -v section="$work/section" '
        /^\.\\" begin of the options/ { print; while ((getline line < section) > 0) print line; skip = 1; next }
        /^\.\\" end of the options/ { skip = 0 }
        !skip' "$page" > "$work/page"
    if [ "${2:-}" = --write ]; then
        cat "$work/page" > "$page"
    elif ! diff "$page" "$work/page"; then
        failed=1
    fi
done
[ $failed = 0 ] || {
    echo "A manual differs from the library's options. This mends it: $0 $program --write" >&2
    exit 1
}
