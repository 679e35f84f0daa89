#!/bin/sh
# Runs the commands of the server's README as they stand there, but at a free port, and looks at what the server answers; and its
# manual renders.
#   check_readme.sh PREFIX      the prefix in which the program is installed
set -eu
prefix=$1
top=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
awk '/^```sh$/ { block = 1; next } /^```/ { block = 0 } block' "$top/examples/server/README.md" | sed "s/8080/$port/" > "$work/commands"
[ -s "$work/commands" ] || { echo "the README has no \`\`\`sh block"; exit 1; }
PATH=$prefix/bin:$PATH
export PATH
. "$work/commands" > "$work/answer" 2> "$work/messages"
server=$!
python3 - "$work/answer" << 'END' || { cat "$work/answer" "$work/messages"; exit 1; }
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["object"] == "chat.completion" and answer["usage"]["completion_tokens"] > 0
assert answer["choices"][0]["message"]["reasoning_content"] or answer["choices"][0]["message"]["content"]
END
man -l "$prefix/share/man/man1/qwenmoe-server.1" > "$work/page" 2> "$work/complaints"
grep -q 'OPTIONS OF THE LIBRARY' "$work/page" || { echo "the manual does not render"; exit 1; }
[ ! -s "$work/complaints" ] || { cat "$work/complaints"; exit 1; }
