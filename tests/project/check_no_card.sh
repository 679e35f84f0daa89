#!/bin/sh
# The CUDA backend on a machine without a card, or with its cards hidden: it can be opened, says why it computes nothing, and
# "auto" goes on with the CPU.
#   check_no_card.sh PROGRAM LIBRARY MODEL
set -eu
program=$1 library=$2 model=$3
CUDA_VISIBLE_DEVICES=
export CUDA_VISIBLE_DEVICES
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
no_card='there is no NVIDIA (driver|card)|the NVIDIA driver serves'

# run CODE ARGUMENT...: runs the program with these and compares the exit code.
run() {
    wanted=$1
    shift
    got=0
    "$program" "$@" > "$work/out" 2> "$work/err" || got=$?
    [ "$got" = "$wanted" ] || { echo "qwenmoe $*: exit code $got, not $wanted"; cat "$work/err"; exit 1; }
}
# says PATTERN: the last run's messages have a line like this.
says() {
    grep -qE -e "$1" "$work/err" || { echo "nothing like '$1' in:"; cat "$work/err"; exit 1; }
}

run 1 info -m "$model" --device cuda --cuda-library "$library"
says "$no_card"
run 1 run -m "$model" --device cuda --cuda-library "$library" --answer-tokens 2 'def f(x):'
says "$no_card"
run 0 info -m "$model" --device auto --cuda-library "$library"
run 0 run -m "$model" --device auto --cuda-library "$library" --verbose --answer-tokens 2 'def f(x):'
says "no card is used: .*($no_card)"
says '^qwenmoe: CPU: '
