#!/bin/sh
# The public header stands alone, in every dialect a host may be written in, without a warning.
set -eu
include=$(dirname "$0")/../../include
tried=0
check() { # COMPILER LANGUAGE STANDARD
    command -v "$1" >/dev/null || return 0
    printf '#include <qwenmoe.h>\nextern int unit;\nint unit = QM_VERSION_MAJOR;\n' |
        "$1" -x "$2" "-std=$3" -pedantic -Wall -Wextra -Werror -I "$include" -c -o /dev/null - ||
        { echo "$1 $3 refuses the header"; exit 1; }
    tried=$((tried + 1))
}
for compiler in gcc clang; do
    for standard in c99 c11 c17; do
        check $compiler c $standard
    done
done
for compiler in g++ clang++; do
    for standard in c++11 c++17; do
        check $compiler c++ $standard
    done
done
[ $tried -gt 0 ] || { echo "there is no compiler to try"; exit 1; }
echo "$tried dialects"
