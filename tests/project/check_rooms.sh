#!/bin/sh
# Each room of lib/ includes only itself and the rooms below it; programs and examples see only the public header.
set -eu
cd "$(dirname "$0")/../.."
failed=0

# Room, then all that it may include.
rooms='base:base
quant:base quant
backend:base quant backend
file:base quant backend file
text:base quant backend text
model:base quant backend file text model
memory:base quant backend file text model memory
exchange:base quant backend file text model memory exchange
run:base quant backend file text model memory exchange run
api:base quant backend file text model memory exchange run api
cpu:base quant backend cpu'

for folder in lib/*/; do
    room=$(basename "$folder")
    allowed=$(printf '%s\n' "$rooms" | sed -n "s/^$room://p")
    [ -n "$allowed" ] || { echo "lib/$room is no room that this test knows"; failed=1; continue; }
    pattern=$(echo "$allowed" | tr ' ' '|')
    # The registry is the door to the backends: it alone names them.
    found=$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' --include='*.[ch]' "$folder" |
        grep -vE "include[[:space:]]*\"($pattern)/" | grep -vE '"qwenmoe\.h"' || true)
    if [ -n "$found" ]; then
        echo "lib/$room includes what it may not:"
        echo "$found"
        failed=1
    fi
done

# The CUDA backend sees the rooms that a backend may, and itself.
found=$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' --include='*.c' --include='*.h' --include='*.cu' \
    --include='*.cuh' cuda | grep -vE "include[[:space:]]*\"((base|quant|backend)/|[a-z_0-9]+\.(h|cuh)\")" || true)
if [ -n "$found" ]; then
    echo "cuda includes what it may not:"
    echo "$found"
    failed=1
fi

inner='(\.\./|lib/|base/|quant/|backend/|file/|text/|model/|memory/|exchange/|run/|api/|cpu/)'
found=$(grep -rnE '#[[:space:]]*include[[:space:]]*["<]'"$inner" \
    --include='*.[ch]' examples || true)
if [ -n "$found" ]; then
    echo "examples include more than the public header:"
    echo "$found"
    failed=1
fi
exit $failed
