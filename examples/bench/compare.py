#!/usr/bin/env python3
"""Measures qwenmoe beside other engines' llama-bench, in turn within the same minutes, and prints a table in Markdown.

    compare.py --qwenmoe build/examples/qwenmoe/qwenmoe --peer llama.cpp=PATH/llama-bench --peer ik=PATH/llama-bench MODEL ...

Each round runs every program once on a model; the table has the medians of the rounds. Tokens a second of prompts (--prompt) and
of generating (--generate), and for the latter the share of the bandwidth: the bytes that a token moves, as `qwenmoe bench`
counts them, times the tokens a second, of what `qwenmoe bench` read in the same rounds. --before puts a command before each
program, such as 'chrt -f 1', which keeps the machine's other work from disturbing.
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys


def output_of(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


class Figures:
    """Of a model: tokens a second by (program, test) of each round, bytes a token moves, and the rates of reading."""

    def __init__(self):
        self.rates, self.bytes, self.read_rates = {}, 0, []

    def add(self, program, test, rate):
        self.rates.setdefault((program, test), []).append(rate)

    def median(self, program, test):
        rates = self.rates.get((program, test))
        return statistics.median(rates) if rates else None

    def share(self, program, test):
        rate = self.median(program, test)
        return rate * self.bytes / self.read_rate() if rate and self.bytes and self.read_rate() else None

    def read_rate(self):
        return statistics.median(self.read_rates) if self.read_rates else 0


def run_own(arguments, model, figures):
    command = [*shlex.split(arguments.before), arguments.qwenmoe, "bench", "-m", model, "-q", "--json", "-r",
               str(arguments.repeat), "-p", ",".join(map(str, arguments.prompt)), "-n", str(arguments.generate)]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    answer = json.loads(output_of(command))
    figures.read_rates.append(answer["read_rate"])
    for line in answer["results"]:
        if line["test"] == "prompt":
            figures.add("qwenmoe", ("prompt", line["size"]), line["median"])
        elif line["test"] == "generate":
            figures.add("qwenmoe", ("generate", line["size"]), line["median"])
            figures.bytes = line["bytes_per_second"] / line["median"]


def run_peer(arguments, name, program, model, figures):
    command = [*shlex.split(arguments.before), program, "-m", model, "-o", "json", "-r", str(arguments.repeat),
               "-p", ",".join(map(str, arguments.prompt)), "-n", str(arguments.generate)]
    if arguments.threads:
        command += ["-t", str(arguments.threads)]
    text = output_of(command)
    start = text.find("[\n") # some print other lines before
    for line in json.loads(text[max(start, 0):]):
        test = ("generate", line["n_gen"]) if line["n_gen"] else ("prompt", line["n_prompt"])
        figures.add(name, test, line["avg_ts"])


def cell(figures, program, test):
    rate = figures.median(program, test)
    if rate is None:
        return "-"
    text = f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"
    share = figures.share(program, test) if test[0] == "generate" else None
    return f"{text}, {share:.0%}" if share else text


def print_table(models, peers, tests):
    names = ["qwenmoe", *peers]
    print("| model | test |", " | ".join(names), "| of the best other |")
    print("| --- " * (len(names) + 3) + "|")
    for model, figures in models.items():
        for test in tests:
            own = figures.median("qwenmoe", test)
            others = [rate for name in peers if (rate := figures.median(name, test))]
            ratio = f"{own / max(others):.2f}" if own and others else "-"
            print(f"| {os.path.basename(model)} | {test[0]} {test[1]} |", " | ".join(cell(figures, n, test) for n in names),
                  f"| {ratio} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--qwenmoe", required=True, help="the program qwenmoe")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PROGRAM", help="another engine's llama-bench")
    parser.add_argument("--prompt", type=lambda text: [int(n) for n in text.split(",") if int(n)], default=[256], metavar="N,...")
    parser.add_argument("--generate", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--repeat", type=int, default=2, metavar="N", help="runs of a program in a round (default 2)")
    parser.add_argument("--threads", type=int, default=0, metavar="N")
    parser.add_argument("--before", default="", metavar="COMMAND")
    arguments = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in arguments.peer)
    models = {}
    for model in arguments.models:
        figures = models[model] = Figures()
        for _ in range(arguments.rounds):
            run_own(arguments, model, figures)
            for name, program in peers.items():
                run_peer(arguments, name, program, model, figures)
    tests = [("prompt", size) for size in arguments.prompt]
    if arguments.generate:
        tests.append(("generate", arguments.generate))
    print_table(models, peers, tests)
    rates = ", ".join(f"{f.read_rate() / 1e9:.1f}" for f in models.values())
    print(f"\nread rate, GB/s: {rates}")


if __name__ == "__main__":
    main()
