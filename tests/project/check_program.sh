#!/bin/sh
# The program qwenmoe as a person or a script meets it: what it prints where, its exit codes, its messages. What the models say is
# tested elsewhere; here a tiny random one is enough.
#   check_program.sh PROGRAM MODEL [VERB]    only that verb's checks
set -u
program=$1 model=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
out=$work/out err=$work/err

# expect CODE ARGUMENT...: runs the program with these, standard input from $work/in, and compares the exit code.
expect() {
    wanted=$1
    shift
    "$program" "$@" < "$work/in" > "$out" 2> "$err"
    got=$?
    last="qwenmoe $*"
    if [ $got != "$wanted" ]; then
        echo "$last: exit code $got, not $wanted"
        cat "$err"
        failed=1
    fi
}
# holds FILE PATTERN: the last run's output has a line like this.
holds() {
    if ! grep -qE -e "$2" "$1"; then
        echo "$last: nothing like '$2' in:"
        head -n 20 "$1"
        failed=1
    fi
}
empty() {
    if [ -s "$1" ]; then
        echo "$last: should print nothing there, but prints:"
        head -n 20 "$1"
        failed=1
    fi
}
same() { # WHAT EXPECTED ACTUAL
    if [ "$2" != "$3" ]; then
        echo "$1: '$3' instead of '$2'"
        failed=1
    fi
}
json() { # EXPRESSION on `d`: true for the last output
    if ! python3 -c "import json, sys; d = json.load(open(sys.argv[1])); sys.exit(not ($1))" "$out"; then
        echo "$last: not $1 in:"
        head -n 40 "$out"
        failed=1
    fi
}
printf 'def f(x):' > "$work/in"
export QWENMOE_MODEL="$model" NO_COLOR=1

check_usage() {
    expect 0 --version
    holds "$out" '^qwenmoe [0-9]+\.[0-9]+\.[0-9]+$'
    expect 0 --help
    holds "$out" '^usage: qwenmoe VERB'
    expect 2
    holds "$err" '^usage:'
    expect 2 dance
    holds "$err" "no verb 'dance'"
    for verb in run chat fill info tokenize bench perplexity options; do
        expect 0 $verb --help
        holds "$out" "^usage: qwenmoe $verb"
        expect 2 $verb --no-such-flag
        holds "$err" 'no option --no-such-flag'
    done
    expect 2 run --temperature
    holds "$err" 'needs a value'
    expect 2 run --temperature warm x
    holds "$err" "temperature.*warm"
    expect 2 run --quiet=1 x
    holds "$err" 'takes no value'
    expect 1 run -m /no/such/file.gguf x
    holds "$err" '^qwenmoe: .*/no/such/file.gguf'
    empty "$out"
    printf 'GGUF' > "$work/short.gguf"
    expect 1 run -m "$work/short.gguf" x
    holds "$err" '^qwenmoe: .*short.gguf'
}

check_options() {
    expect 0 options
    holds "$out" '^temperature	sampling	float	0\.\.100	'
    expect 0 options --json
    json 'len(d) > 20 and {o["scope"] for o in d} == {"model", "session", "sampling"}'
    # Every option of the library is in the help of the verb that takes all.
    "$program" options | cut -f1 > "$work/names"
    expect 0 run --help
    while read -r name; do
        holds "$out" "^ +--$name "
    done < "$work/names"
}

check_run() {
    expect 0 run --temperature 0 --answer-tokens 8 --ignore-end 1 'def f(x):'
    holds "$err" 'answer 8 tokens, [0-9.]+ tokens/s$'
    cp "$out" "$work/words"
    expect 0 run -q --temperature 0 --answer-tokens 8 --ignore-end 1
    empty "$err"
    same 'run from standard input' "$(cat "$work/words")" "$(cat "$out")"
    expect 0 run --quiet --temperature=0 --answer-tokens=8 --ignore-end=1 --file "$work/in"
    same 'run from a file' "$(cat "$work/words")" "$(cat "$out")"
    expect 0 run -q --echo --temperature 0 --answer-tokens 8 --ignore-end 1 'def f(x):'
    same 'run --echo' "def f(x):$(cat "$work/words")" "$(cat "$out")"
    expect 0 run -q --seed 5 --answer-tokens 8 --ignore-end 1 x
    cp "$out" "$work/seeded"
    expect 0 run -q --seed 5 --answer-tokens 8 --ignore-end 1 x
    same 'the same seed' "$(cat "$work/seeded")" "$(cat "$out")"
    expect 2 run -f "$work/in" both
    expect 0 run -q --chat --system 'Be brief.' --answer-tokens 8 hello
    expect 2 run --chat --think maybe x
    holds "$err" "off|on"
    printf 'bad \377 bytes' > "$work/bad"
    expect 1 run -f "$work/bad"
    holds "$err" '^qwenmoe: .*UTF-8'
    expect 2 run --preset huge x
    expect 1 run --context 40 --answer-tokens 64 x
    holds "$err" '64'
    holds "$err" '40'
    # The context must hold the prompt and all of the answer's budget: to the token.
    expect 0 tokenize --count 'def f(x):'
    count=$(cat "$out")
    expect 0 run --context 64 --answer-tokens $((64 - count)) 'def f(x):'
    expect 1 run --context 64 --answer-tokens $((65 - count)) 'def f(x):'
    empty "$out"
    holds "$err" "prompt $count \+ answer $((65 - count)) = 65 tokens, but the context holds 64: set --context to at least 65"
    expect 0 run --context 64 --answer-tokens 0 --ignore-end 1 'def f(x):'
    holds "$err" "answer $((64 - count)) tokens"
}

check_chat() {
    printf '%s\n' hello '/think off' '/system Be brief.' 'and \' then "/save $work/saved.json" /nonsense /quit 'never read' \
        > "$work/in"
    expect 0 chat --answer-tokens 6
    holds "$err" 'no command /nonsense'
    same 'two answers' 2 "$(grep -c 'answer [0-9]* tokens' "$err")"
    cp "$work/saved.json" "$out"
    json '[m["role"] for m in d] == ["system", "user", "assistant"] and d[1]["content"] == "and \nthen"'
    printf '/system\nfirst\nsecond\n' > "$work/in"
    expect 0 chat --answer-tokens 6 --save "$work/saved.json"
    cp "$work/saved.json" "$out"
    json '[m["role"] for m in d] == ["user", "assistant", "user", "assistant"]'
    # A conversation may outgrow the room for whole answers: it says so and goes on with shorter ones.
    printf 'hello\n' > "$work/in"
    expect 0 chat --context 64 --answer-tokens 60 --ignore-end 1
    holds "$err" 'prompt [0-9]+ \+ answer 60 = '
    holds "$err" 'answer [1-9][0-9]* tokens'
    expect 2 chat some words
    expect 1 chat --answer-tokens 6 --save /no/such/folder/file
}

check_fill() {
    expect 1 fill -f "$work/in"
    holds "$err" 'has no <FILL>'
    expect 0 fill -q --answer-tokens 6 'def f(' ')'
    cp "$out" "$work/middle"
    printf 'def f(<FILL>)' > "$work/in"
    expect 0 fill -q --answer-tokens 6
    same 'fill by a mark' "$(cat "$work/middle")" "$(cat "$out")"
    printf 'def f(' > "$work/prefix"
    printf ')' > "$work/suffix"
    expect 0 fill -q --answer-tokens 6 --whole --prefix "$work/prefix" --suffix "$work/suffix"
    same 'fill --whole' "def f($(cat "$work/middle"))" "$(cat "$out")"
    expect 2 fill one two three
    # A text longer than the context loses what is farthest from the gap, and says so.
    for _ in 1 2 3 4 5 6 7 8; do printf 'x = x + 1\ny = y + 1\nz = z + 1\n'; done > "$work/long"
    expect 0 fill -q --context 64 --answer-tokens 6 --prefix "$work/long" --suffix "$work/suffix"
    holds "$err" 'longer than the context'
}

check_info() {
    expect 0 info
    holds "$out" '^architecture +qwen'
    holds "$out" '^parameters +[0-9]'
    expect 0 info --json
    json 'd["model"]["parameters"] > 0 and d["model"]["file_bytes"] > 0 and d["plan"]["layers"] > 0'
    expect 1 info -m "$work/none.gguf"
    expect 0 info --device cpu --plan-devices 12G,8000000
    holds "$out" '^over 3 devices: fits'
    holds "$out" '^ +card:0 +0-[0-9]'
    expect 0 info --device cpu --plan-devices 1000
    holds "$out" '^ +card:0 +none'
    holds "$out" '^ +cpu +0-[0-9]'
    expect 0 info --devices cpu,cpu --split tensor
    holds "$out" '^2 devices, split by parts of layers .tensor.: fits'
    holds "$out" '^  cpu #1 +50% of 0-[0-9]'
    expect 0 info --devices cpu,cpu@1000000
    holds "$out" 'does not fit: cpu #1 needs'
    expect 1 info --plan-devices 12Q
    holds "$err" '12G,24G'
}

check_tokenize() {
    expect 0 tokenize --ids 'def f(x):'
    ids=$(cat "$out")
    expect 0 tokenize --count 'def f(x):'
    same 'tokenize --count' "$(echo "$ids" | wc -w)" "$(cat "$out")"
    expect 0 tokenize --decode "$ids"
    same 'tokenize --decode' 'def f(x):' "$(cat "$out")"
    expect 0 tokenize --json 'def f(x):'
    json "d['ids'] == [int(i) for i in '$ids'.split()] and d['count'] == len(d['ids'])"
    expect 0 tokenize 'def f(x):'
    same 'a token a line' "$(echo "$ids" | wc -w)" "$(wc -l < "$out")"
    expect 1 tokenize --decode 999999999
    expect 2 tokenize --special some x
}

check_bench() {
    expect 0 bench -p 16,32 -n 4 -d 0,8 -r 2 --sequences 1,2 --json
    json '[(r["test"], r["size"], r["depth"], r["sequences"]) for r in d["results"]] == [
        (t, s, depth, q) for depth in (0, 8) for t, s, q in (("prompt", 16, 1), ("first token", 16, 1), ("prompt", 32, 1),
        ("first token", 32, 1), ("generate", 4, 1), ("generate", 4, 2))]'
    json 'all(0 < r["min"] <= r["median"] <= r["max"] for r in d["results"])'
    json 'd["read_rate"] > 0 and all((r["test"] == "generate") == (r.get("share_of_read_rate", 0) > 0) for r in d["results"])'
    expect 0 bench -p 16 -n 0 -r 1 --cancel
    holds "$out" '^prompt +16 +0 +1 '
    holds "$out" '^cancel +16 +0 +1 '
    expect 0 bench --tokenize "$work/in" -r 1 --json
    json 'd["results"][0]["unit"] == "MB/s"'
    # Beside another engine, here one that always prints the same.
    cat > "$work/peer" <<'END'
#!/bin/sh
echo 'noise'
echo '['
echo '{ "n_prompt": 8, "n_gen": 0, "avg_ts": 0.5 }, { "n_prompt": 0, "n_gen": 4, "avg_ts": 0.25 } ]'
END
    chmod +x "$work/peer"
    last="compare.py"
    "$(dirname "$0")/../../examples/bench/compare.py" --qwenmoe "$program" --peer "other=$work/peer" --prompt 8 --generate 4 \
        --rounds 1 --repeat 1 "$model" > "$out" 2> "$err" || { cat "$err"; failed=1; }
    holds "$out" '^\| .*gguf \| prompt 8 \| [0-9.]+ \| 0.5 \| [0-9.]+ \|$'
    holds "$out" '^\| .*gguf \| generate 4 \| [0-9.]+, [0-9]+% \| 0.2, 0% \| [0-9.]+ \|$'
    expect 2 bench -p 12,x
    expect 2 bench --all-splits
    expect 0 bench --all-splits --devices cpu,cpu -p 16 -n 2
    holds "$out" '^layers +[0-9]'
    holds "$out" '^tensor +[0-9]'
    holds "$out" 'an exchange by host [0-9]'
}

check_perplexity() {
    for i in 1 2 3 4 5 6; do printf 'for i in range(%d):\n    print(i * %d)\n' $i $i; done > "$work/in"
    expect 0 perplexity -w 24 -o 8 --save "$work/16" --json
    json 'd["perplexity"] > 1 and d["window"] == 24 and d["overlap"] == 8'
    first=$(python3 -c "import json; print(json.load(open('$out'))['perplexity'])")
    # Compared with itself nothing differs but what 16 bits round away.
    expect 0 perplexity --against "$work/16" --json
    json "abs(d['perplexity'] - $first) < 1e-9 * $first"
    json 'd["against"]["kl_max"] < 1e-6 and d["against"]["top1_agreement"] > 0.99'
    expect 0 perplexity -w 24 -o 8 --save "$work/32" --bits 32
    expect 0 perplexity --against "$work/32" --json
    json 'd["against"]["kl_max"] == 0 and d["against"]["top1_agreement"] == 1 and d["against"]["ratio"] == 1'
    # Another setting that changes no more than rounding is seen, but small.
    expect 0 perplexity --against "$work/32" --kv-type f32 --json
    json '0 <= d["against"]["kl_mean"] < 1e-2'
    expect 1 perplexity --against "$work/in"
    holds "$err" 'not a file of log probabilities'
    head -c 3000 "$work/32" > "$work/cut"
    expect 1 perplexity --against "$work/cut"
    holds "$err" 'ends too early'
    expect 2 perplexity --against "$work/32" -w 24
    expect 2 perplexity --against "$work/32" --special all
    expect 2 perplexity -w 1
    printf 'a<|im_end|>b<|im_end|>c' > "$work/in"
    expect 0 perplexity --special all --json
    json 'd["tokens_scored"] == 4'
    expect 0 perplexity --json
    json 'd["tokens_scored"] > 4'
}

for verb in ${3:-usage options run chat fill info tokenize bench perplexity}; do
    printf 'def f(x):' > "$work/in"
    "check_$verb"
done
exit $failed
