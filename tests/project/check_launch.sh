#!/bin/sh
# The launcher: what it makes of the environments of mpirun, srun and torchrun; and ranks as processes, which compute as one, and
# of which one that is killed, stopped, missing or has another file is named by all.
#   check_launch.sh LAUNCH QWENMOE MODEL OTHER_MODEL
set -u
launch=$1 qwenmoe=$2 model=$3 other=$4
work=$(mktemp -d)
failed=0
trap 'rm -rf "$work"' EXIT

fault() {
    echo "$1"
    failed=1
}

# ---- environments: each is faked, and what would be run is printed ----

# The whole line but the key, which is random.
shows() { # WANTED VARIABLE=VALUE... -- ARGUMENT...
    wanted=$1
    shift
    variables=
    while [ "$1" != -- ]; do
        variables="$variables $1"
        shift
    done
    shift
    # shellcheck disable=SC2086
    got=$(env -i $variables "$launch" --dry-run "$@" 2>&1 | sed 's|/[0-9a-f]\{24\}|/KEY|')
    [ "$got" = "$wanted" ] || fault "with$variables
  got    $got
  wanted $wanted"
}

shows 'mpirun: p run --rank 2 --ranks 4 --rank-id head:5001/KEY' OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 \
    OMPI_COMM_WORLD_LOCAL_RANK=0 MASTER_ADDR=head MASTER_PORT=5001 -- p run
shows 'mpirun: p --rank 0 --ranks 2 --rank-id 127.0.0.1:20100/KEY' OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 \
    OMPI_COMM_WORLD_LOCAL_SIZE=2 OMPI_MCA_ess_base_jobid=9100 -- p
shows 'mpirun (PMI): p --rank 1 --ranks 2 --rank-id h:29400/KEY --device cuda:1' PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 \
    MASTER_ADDR=h -- --cards p
shows 'srun: p --rank 3 --ranks 4 --rank-id node03:21234/KEY --device cuda:1 -- text' SLURM_PROCID=3 SLURM_NTASKS=4 \
    SLURM_LOCALID=1 'SLURM_JOB_NODELIST=node[03-07,9],other' SLURM_JOB_ID=10234 -- --cards p -- text
shows 'srun: p --rank 0 --ranks 2 --rank-id gpu-b:7/KEY' SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=gpu-b,gpu-a \
    SLURM_JOB_NODELIST=gpu-a,gpu-b -- --port 7 p
shows 'torchrun: p --rank 1 --ranks 2 --rank-id h:6001/KEY' RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=h MASTER_PORT=6000 \
    TORCHELASTIC_RUN_ID=x -- p
shows 'torchrun: p 1/2 [::1]:6000/KEY card 1' RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=::1 MASTER_PORT=6000 -- \
    p '{rank}/{ranks}' '{id}' card '{local}'
says="qwenmoe-launch:"
shows "$says no rank in the environment: start this with mpirun, srun or torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and \
MASTER_PORT" A=1 -- p
shows "$says RANK is 2, but WORLD_SIZE is 2" RANK=2 WORLD_SIZE=2 MASTER_ADDR=h -- p
shows "$says RANK is \"x\" in the environment, and should be a number" RANK=x WORLD_SIZE=2 MASTER_ADDR=h -- p
shows "$says where is rank 0? Give its machine with --host, or in the environment variable MASTER_ADDR" RANK=0 WORLD_SIZE=2 -- p
"$launch" --help | grep -q -- '--rank-id' || fault "--help does not say what the program gets"
"$launch" --port 0 p 2> /dev/null
[ $? = 2 ] || fault "--port 0 is taken"

# ---- ranks as processes ----

port=$((20000 + $$ % 9000))
tell="--device cpu --threads 1 --pin 0 --temperature 0 --quiet"
endless="--answer-tokens 0 --ignore-end 1 --context 4096"

# In the background, so that $! is its process: the launcher becomes the program.
start() { # RANK RANKS MODEL ARGUMENT...
    rank=$1 ranks=$2 file=$3
    shift 3
    # shellcheck disable=SC2086
    RANK=$rank WORLD_SIZE=$ranks MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
        "$launch" --timeout 20 "$qwenmoe" run --model "$file" $tell "$@" "one two three" > "$work/out$rank" 2> "$work/err$rank" &
}

# The process ends by itself, with an error that names rank 1 and has the word.
ends_with() { # RANK PROCESS WORD
    wait "$2"
    code=$?
    [ $code = 1 ] || fault "rank $1 ended with $code and not 1"
    if ! grep -q "rank 1" "$work/err$1" || ! grep -q "$3" "$work/err$1"; then
        fault "rank $1 says \"$(cat "$work/err$1")\", and should name rank 1 and say \"$3\""
    fi
}

# shellcheck disable=SC2086
"$qwenmoe" run --model "$model" $tell --answer-tokens 16 "one two three" > "$work/alone" 2>&1
start 1 3 "$model" --answer-tokens 16
start 2 3 "$model" --answer-tokens 16
start 0 3 "$model" --answer-tokens 16
wait
cmp -s "$work/alone" "$work/out0" || fault "three ranks write \"$(cat "$work/out0" "$work/err0")\", one \"$(cat "$work/alone")\""
cat "$work/err1" "$work/err2" > "$work/silent"
[ ! -s "$work/silent" ] || fault "ranks 1 and 2 end in peace with: $(cat "$work/silent")"

# Rank 0 writes without end, until rank 1 gets the signal.
ends_after() { # SIGNAL WORD
    port=$((port + 1))
    rm -f "$work"/out*
    start 1 3 "$model" $endless --rank-timeout 2
    first=$!
    start 2 3 "$model" $endless --rank-timeout 2
    second=$!
    start 0 3 "$model" $endless --rank-timeout 2
    zero=$!
    tries=0
    while [ ! -s "$work/out0" ] && [ $tries -lt 200 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -"$1" $first
    ends_with 0 $zero "$2"
    ends_with 2 $second "$2"
    kill -KILL $first 2> /dev/null
    wait $first 2> /dev/null
}
ends_after KILL "connection"
ends_after STOP "silent"

port=$((port + 1))
start 1 2 "$other"
first=$!
start 0 2 "$model"
ends_with 0 $! "another file"
ends_with 1 $first "another file"

port=$((port + 1))
RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$launch" --timeout 1 "$qwenmoe" run > "$work/out0" 2> "$work/err0" &
ends_with 0 $! "within 1 s"
exit $failed
