#!/bin/sh
# Two hosts, which are network namespaces with a cable between them: ranks on both write what one process writes, and when the
# cable is cut, both end with an error that names the other. Skipped where namespaces can't be made (that takes root).
#   check_hosts.sh LAUNCH QWENMOE MODEL
set -u
launch=$1 qwenmoe=$2 model=$3
one=qm-host1-$$ two=qm-host2-$$
work=$(mktemp -d)
failed=0
trap 'ip netns del $one 2> /dev/null; ip netns del $two 2> /dev/null; rm -rf "$work"' EXIT

make_hosts() {
    ip netns add $one && ip netns add $two && ip netns exec $one ip link add cable type veth peer name cable netns $two &&
        ip netns exec $one ip addr add 10.77.0.1/24 dev cable && ip netns exec $two ip addr add 10.77.0.2/24 dev cable &&
        ip netns exec $one ip link set cable up && ip netns exec $two ip link set cable up
}
if ! make_hosts > /dev/null 2>&1; then
    echo "network namespaces can't be made here"
    exit 77
fi

start() { # HOST RANK ARGUMENT...
    host=$1 rank=$2
    shift 2
    # shellcheck disable=SC2086
    RANK=$rank WORLD_SIZE=2 MASTER_ADDR=10.77.0.1 MASTER_PORT=7000 ip netns exec "$host" "$launch" --timeout 20 "$qwenmoe" run \
        --model "$model" --device cpu --threads 1 --pin 0 --temperature 0 --quiet "$@" "one two three" \
        > "$work/out$rank" 2> "$work/err$rank" &
}

"$qwenmoe" run --model "$model" --device cpu --threads 1 --pin 0 --temperature 0 --quiet --answer-tokens 16 "one two three" \
    > "$work/alone" 2>&1
start $two 1 --answer-tokens 16
start $one 0 --answer-tokens 16
wait
if ! cmp -s "$work/alone" "$work/out0"; then
    echo "two hosts write \"$(cat "$work/out0" "$work/err0" "$work/err1")\", one \"$(cat "$work/alone")\""
    failed=1
fi

endless="--answer-tokens 0 --ignore-end 1 --context 4096 --rank-timeout 2"
rm -f "$work"/out*
# shellcheck disable=SC2086
start $two 1 $endless
# shellcheck disable=SC2086
start $one 0 $endless
tries=0
while [ ! -s "$work/out0" ] && [ $tries -lt 200 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
ip netns exec $one ip link set cable down
wait
for rank in 0 1; do
    if ! grep -q "rank $((1 - rank)) .*silent" "$work/err$rank"; then
        echo "with the cable cut rank $rank says \"$(cat "$work/err$rank")\", and should name rank $((1 - rank))"
        failed=1
    fi
done
exit $failed
