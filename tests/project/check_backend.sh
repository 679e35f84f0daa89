#!/bin/sh
# A backend in a shared object exports its entry and nothing else, and asks for no library that a machine without its device lacks.
#   check_backend.sh LIBRARY
set -eu
exported=$(nm -D --defined-only "$1" | awk '$2 != "A" { print $3 }')
[ "$exported" = qmi_backend_entry ] || { echo "$1 exports: $exported"; exit 1; }
needed=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for name in $needed; do
    case $name in
    libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | libgcc_s.so* | libstdc++.so* | ld-linux*) ;;
    *) echo "$1 needs $name"; exit 1 ;;
    esac
done
