"""Completion: what is shown, what the keys do with it, what a key costs."""
import random
import re
import subprocess

import setting
from setting import Plugin, endless, expect, report

BODY = ('import os\n\n\ndef count_lines(path):\n    """Number of lines in a file."""\n    \n\n\ndef main():\n'
        '    print(count_lines("x"))')
FILE = "\n".join(f"def function_{i}(value):\n    return value * {i} + {i % 7}\n" for i in range(100))
SMALL = "\n".join(FILE.split("\n")[:18])


def test_appears():
    """The grey text is what the program `qwenmoe fill` writes at the same place, and is not in the buffer."""
    text = BODY.replace("    \n", "")
    lines = text.split("\n")
    nvim = Plugin().ready()
    lines.insert(5, "")
    nvim.open("\n".join(lines), 6, 0)
    offered = nvim.offered()
    before, after = "\n".join(lines[:5]) + "\n", "\n" + "\n".join(lines[6:])
    filled = subprocess.run([setting.program, "fill", "-q", "-m", setting.model, "--answer-tokens", "96", before, after],
                            capture_output=True, text=True, check=True)
    expect(offered.split("\n")[0], filled.stdout.split("\n")[0].rstrip(), "first line")
    shown = "\n".join(line.strip() for line in offered.split("\n") if line.strip())
    nvim.until(lambda: nvim.grey() == shown, f"grey text {shown!r}")
    expect(nvim.lines(), lines, "the buffer")
    nvim.keys("<Esc>")
    nvim.until(lambda: nvim.grey() == "", "the grey text's end")
    nvim.finish()


def saying(text):
    """An editor in which every completion is this text, by a grammar that allows nothing else, and comes only when asked for."""
    quoted = text.replace('"', '\\"').replace("\n", "\\n")
    return Plugin({"completion": {"enabled": False, "options": {"grammar": f'root ::= "{quoted}"'}}}).ready()


def ask(nvim, text):
    nvim.keys("<M-Space>")
    nvim.until(lambda: nvim.ghost() == text, "the completion")


def test_accept():
    """Whole, by line, by word; several lines are shown below the cursor's."""
    text = "    with open(path) as file:\n        return sum(1 for _ in file)"
    shown = "with open(path) as file:\nreturn sum(1 for _ in file)"
    base = "def f(path):\n\n\nprint(f)".split("\n")
    nvim = saying(text)

    def fresh():
        nvim.keys("<Esc>")
        nvim.until(lambda: nvim.call("nvim_get_mode")["mode"] == "n", "normal mode")
        nvim.open("\n".join(base), 2, 0)
        ask(nvim, text)

    fresh()
    nvim.until(lambda: nvim.grey() == shown, "two grey lines")
    expect(nvim.screen()[1:4], ["    with open(path) as file:", "        return sum(1 for _ in file)", ""], "the screen")
    nvim.keys("<Tab>")
    nvim.until(lambda: nvim.lines() == base[:1] + text.split("\n") + base[2:], "taking all")
    expect(nvim.call("nvim_win_get_cursor", 0), [3, len(text.split("\n")[1])], "the cursor")
    expect(nvim.grey(), "", "grey text")
    fresh()
    nvim.keys("<M-l>")
    nvim.until(lambda: nvim.lines() == base[:1] + text.split("\n")[:1] + base[2:], "taking a line")
    nvim.keys("<M-l>")
    nvim.until(lambda: nvim.lines() == base[:1] + text.split("\n") + base[2:], "taking the next line")
    fresh()
    for wanted in ("    with", "    with open", "    with open(", "    with open(path"):
        nvim.keys("<M-w>")
        nvim.until(lambda: nvim.lines()[1] == wanted, f"taking words up to {wanted!r}")
    expect(nvim.ghost(), text[len("    with open(path"):], "what is left")
    nvim.keys("<C-]>")
    nvim.until(lambda: nvim.ghost() == "" and nvim.grey() == "", "taking it away")
    nvim.finish()


def test_within_line():
    """The rest of the line moves behind the text; a key without anything to take does what it always does."""
    nvim = saying("3,")
    nvim.open("x = f(1)\ny = 2", 1, 5)
    ask(nvim, "3,")
    nvim.until(lambda: nvim.screen()[0] == "x = f(3,1)", "the moved rest")
    nvim.keys("<Tab>")
    nvim.until(lambda: nvim.lines()[0] == "x = f(3,1)", "taking it")
    nvim.command("set noexpandtab softtabstop=0")
    nvim.keys("<Tab>")
    nvim.until(lambda: nvim.lines()[0] == "x = f(3,\t1)", "a tab")
    nvim.finish()


def test_mapping_before():
    """A mapping that was there is used when nothing is shown, also after another setup, which gives other keys back."""
    nvim = Plugin(setup=False)
    nvim.command("inoremap <Tab> mapped")
    nvim.setup({})
    nvim.setup({"keys": {"accept": False}})
    expect(nvim.call("nvim_exec", "silent inoremap <Tab>", True).split()[-1], "mapped", "the mapping that was given back")
    nvim.setup({})
    nvim.ready()
    nvim.command("let b:qwenmoe = v:false")
    nvim.keys("i<Tab>!")
    nvim.until(lambda: nvim.lines() == ["mapped!"], "the earlier mapping")
    nvim.finish()


def test_cancel():
    """The next key ends the answer under way; leaving insert mode leaves nothing."""
    nvim = Plugin(endless()).ready()
    nvim.open(BODY, 6, 3)
    for key in "xq;":
        nvim.until(nvim.ghost, "a completion")
        before = nvim.statistics()
        nvim.keys(key)
        nvim.until(lambda: nvim.statistics()["cancelled"] == before["cancelled"] + 1, "cancelling")
        nvim.until(lambda: nvim.statistics()["requests"] == before["requests"] + 1, "asking again")
        if nvim.lua("return require('qwenmoe.job').count()") > 1:
            raise AssertionError("two jobs at once")
    nvim.until(nvim.ghost, "a completion")
    nvim.keys("<Esc>")
    nvim.until(lambda: nvim.lua("return require('qwenmoe.job').count()") == 0, "the end of all jobs")
    expect(nvim.grey(), "", "grey text")
    nvim.finish()


def test_cache():
    """Typing what is shown keeps it, and going back finds it again, both without a request."""
    nvim = Plugin().ready()
    nvim.open(BODY, 6, 3)
    text = nvim.offered()
    asked = nvim.statistics()["requests"]
    for i in range(1, 5):
        nvim.keys("<lt>" if text[i - 1] == "<" else text[i - 1])
        nvim.until(lambda: nvim.ghost() == text[i:], f"the rest after {i} keys")
    nvim.keys("<BS><BS><BS><BS>")
    nvim.until(lambda: nvim.ghost() == text, "the first completion")
    nvim.keys("~<BS>")
    nvim.until(lambda: nvim.lines()[5] == "    " and nvim.ghost() == text, "the first completion again")
    expect(nvim.statistics()["requests"] - asked <= 1, True, "no request but for the wrong key")
    nvim.finish()


def test_cost():
    """A key costs the tokens that it changed, not the file: a new line too, and going on after a jump costs the text there."""
    nvim = Plugin().ready()
    nvim.open(FILE, 201, 0)
    nvim.answered()
    whole = nvim.statistics()["tokens"]
    expect(whole > 1500, True, f"the first prompt has many tokens ({whole})")

    def cost(keys):
        before = nvim.statistics()
        nvim.keys(keys)
        nvim.until(lambda: nvim.statistics()["requests"] > before["requests"], "a request")
        nvim.idle()
        return nvim.statistics()["tokens"] - before["tokens"]

    for keys in ("x", "y", " = 7", "<CR>z", "<CR>def f"):
        tokens = cost(keys)
        expect(tokens < 60, True, f"{keys!r} costs few tokens ({tokens} of {whole})")
    tokens = cost("<Down><Down><Down><Down><End>q")
    expect(tokens < whole * 0.7, True, f"four lines on costs less than all ({tokens} of {whole})")
    nvim.finish()


def test_other_buffers():
    """Lines of other buffers stand in front of the prompt, in an order that stays."""
    nvim = Plugin().ready()
    nvim.command("edit alpha.py")
    nvim.call("nvim_buf_set_lines", 0, 0, -1, False, ["def alpha_helper(x):", "    return x"])
    nvim.command("hide edit beta.py")
    nvim.call("nvim_buf_set_lines", 0, 0, -1, False, ["def beta_helper(x):", "    return x"])
    nvim.command("hide edit gamma.py")
    nvim.keys("ibe")
    nvim.answered()
    text = nvim.lua("""
        local library, session = require("qwenmoe.library"), require("qwenmoe.model").completion[0]
        local ffi = require("ffi")
        local ids = ffi.new("int32_t[8192]")
        local count = library.C.qm_session_tokens(session, ids, 8192)
        return library.text(function(buffer, size)
            return library.C.qm_detokenize(require("qwenmoe.model").model[0], ids, count, 0, buffer, size)
        end)""")
    wanted = ("<|file_sep|>alpha.py\ndef alpha_helper(x):\n    return x\n<|file_sep|>beta.py\ndef beta_helper(x):\n    return x\n"
              "<|file_sep|>gamma.py\n<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>be")
    expect(text[:len(wanted)], wanted, "the prompt")
    nvim.finish()


def test_long_lines():
    """Nothing is asked in a line of 200 KB, and of long lines no more is taken than is soon read."""
    nvim = Plugin().ready()
    nvim.open("x" * 200000 + "\n\n" + "y" * 200000, 1, 5, filetype="text")
    nvim.keys("a")
    nvim.until(lambda: len(nvim.lines()[0]) == 200001, "typing")
    nvim.keys("<Esc>jib")
    nvim.answered()
    expect(nvim.statistics()["requests"], 1, "requests")
    expect(nvim.statistics()["tokens"] < 32, True, "few tokens")
    nvim.keys("<Esc>")
    nvim.open("\n".join("z" * 2000 for _ in range(600)) + "\n", 601, 0, filetype="text")
    sizes = nvim.lua("""
        local place = require("qwenmoe.context").at(0, 400, 0, require("qwenmoe.config").current.completion, nil)
        return { #place.prefix, #place.suffix }""")
    expect(0 < sizes[0] <= 65536 and 0 < sizes[1] <= 16384 + 2001, True, f"sizes of prefix and suffix ({sizes})")
    nvim.finish()


def test_parts():
    """What of an answer is offered, and its parts, on texts made for it."""
    nvim = Plugin(setup=False)

    def call(function, *arguments):
        return nvim.lua(f"return {{ require('qwenmoe.answer').{function}(...) }}", *arguments)

    def offer(text, lines=5, line="", rest="", after="", what="offer"):
        return call(what, text, {"line": line, "rest": rest, "after": after}, lines)

    expect(offer("a\nb"), ["a\nb", False], "as it is")
    expect(offer("a\nb\nc", lines=2), ["a\nb", True], "two lines at most")
    expect(offer("a<|file_sep|>b"), ["a", True], "a mark")
    expect(offer("a\n}\nb", after="\n}\n"), ["a", True], "what follows anyway")
    expect(offer("a\n}", after="}\n"), ["a\n}", False], "a line that may grow")
    expect(offer("a\n}", after="}\n", what="final"), ["a"], "the same at the end")
    expect(offer("1, 2)\nx", rest=")"), ["1, 2", True], "within a line")
    expect(offer("\n\n  ", what="final"), [""], "blanks")
    expect(offer("x\n    y\n\ndef g():\n", line="    "), ["x\n    y", True], "the end of the block")
    expect(offer("    x\ny\nz"), ["    x", True], "the end of the block that begins with the text")
    expect(offer("    x\n    y\nz"), ["    x\n    y\nz", False], "a line that may grow to be of the block")
    expect(offer("x;\n}\nint y;\n", line="    return "), ["x;\n}", True], "the bracket that closes the block")
    expect(offer("\n    x\n\ndef g():\n", line="def f():"), ["\n    x\n\ndef g():\n", False], "a block after the line")
    expect(call("part", "\n    return x", "line"), ["\n    return x"], "a line after a line end")
    expect(call("part", "foo(bar)\nx", "line"), ["foo(bar)"], "a line")
    expect(call("part", "  foo(bar)", "word"), ["  foo"], "a word")
    expect(call("part", "(bar)", "word"), ["("], "a sign")
    expect(call("part", "größe = 1", "word"), ["größe"], "a word of other letters")
    expect(call("code", "Here:\n```python\na\nb\n```\nThat is it."), ["a\nb"], "a block")
    expect(call("code", "\n  a\nb\n"), ["  a\nb"], "no block")
    expect(call("code", "```\na\n"), ["a\n"], "an open block")
    nvim.finish()


def test_where():
    """Not in other modes, file types that were left out, buffers that say no, or with much right of the cursor."""
    nvim = Plugin({"completion": {"filetypes": {"text": False}}}).ready()
    nvim.open(BODY, 6, 3, filetype="text")
    nvim.keys("x")
    nvim.until(lambda: nvim.lines()[5] == "    x", "typing")
    nvim.keys("<Esc>")
    nvim.open(BODY, 5, 3)
    nvim.keys("x<Esc>")
    nvim.until(lambda: nvim.call("nvim_get_mode")["mode"] == "n", "normal mode")
    nvim.command("let b:qwenmoe = v:false")
    nvim.keys("6GAx")
    nvim.until(lambda: nvim.lines()[5] == "    x", "typing")
    expect(nvim.statistics()["requests"], 0, "requests")
    nvim.keys("<M-Space>")
    nvim.until(lambda: nvim.statistics()["requests"] == 1, "a request by key")
    nvim.finish()


CLOCK = """
    local ffi, complete = require("ffi"), require("qwenmoe.complete")
    ffi.cdef("struct qwenmoe_test_time { long seconds, nanoseconds; }; int clock_gettime(int, struct qwenmoe_test_time *);")
    local time = ffi.new("struct qwenmoe_test_time[1]")
    local function now(clock) -- milliseconds of Linux's clock 1, which goes on, or 3, of this thread's computing
        ffi.C.clock_gettime(clock, time)
        return tonumber(time[0].seconds) * 1e3 + tonumber(time[0].nanoseconds) / 1e6
    end
    _G.tick, _G.key, _G.ticks, _G.keys, _G.sum = { 0, 0 }, { 0, 0 }, 0, 0, 0
    local function note(most, wall, computing)
        local elapsed = { now(1) - wall, now(3) - computing }
        most[1], most[2] = math.max(most[1], elapsed[1]), math.max(most[2], elapsed[2])
        return elapsed[2]
    end
    local wall, computing = now(1), now(3)
    vim.loop.new_timer():start(1, 1, function()
        note(_G.tick, wall, computing)
        _G.ticks, wall, computing = _G.ticks + 1, now(1), now(3)
    end)
    local update = complete.update
    complete.update = function(asked)
        local before, mine = now(1), now(3)
        update(asked)
        _G.sum, _G.keys = _G.sum + note(_G.key, before, mine), _G.keys + 1
    end"""


def test_blocking():
    """Reported: the longest time between two ticks of a timer of 1 ms while one types, and the longest that a key took; and of
    each the part in which the editor's thread computed, which does not count other programs on the same processors."""
    nvim = Plugin().ready()
    nvim.open(FILE, 201, 0)
    nvim.answered()
    nvim.lua(CLOCK)
    typed = "total = 0\rfor item in items:\rtotal += item.value\r"
    for key in typed * 2:
        nvim.keys("<CR>" if key == "\r" else key)
        for _ in range(3):
            nvim.hear(0.01)
    tick, key, ticks, keys, mean = nvim.lua("return { _G.tick, _G.key, _G.ticks, _G.keys, _G.sum / _G.keys }")
    report(f"longest time between two of {ticks} ticks {tick[0]:.1f} ms, computing {tick[1]:.1f}; longest in the plugin for a "
           f"key {key[0]:.1f} ms, computing {key[1]:.1f}; mean of {keys} events {mean:.2f}")
    nvim.finish()


def memory(nvim):
    """Resident bytes that are no file's."""
    with open(f"/proc/{nvim.process.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def test_many_keys():
    """Ten thousand keystrokes of all kinds: no error, no growth."""
    nvim = Plugin({"options": {"checkpoint-memory": 8000000}, "completion": {"delay": 0, "cache": 32}}).ready()
    nvim.open(SMALL, 9, 0)
    nvim.command("set nosmartindent undolevels=10")
    nvim.answered()
    draw = random.Random(1)
    kinds = ["return value ", "x = [1, 2]", "<CR>", "<BS>", "<BS><BS>", "<Tab>", "<M-w>", "<M-l>", "<C-]>", "<M-Space>", "<Left>",
             "<Up>", "<Esc>o", "<Esc>ddO", "(", ")", "\t", "é", "for i in range(3):", "<C-w>", "<C-u>", "<Down><End>"]
    sent, groups, sizes = 0, 0, []
    while sent < 10000:
        keys = "".join(draw.choice(kinds) for _ in range(5))
        sent += len(re.sub("<[^>]*>", ".", keys))
        nvim.keys(keys)
        nvim.lua("return 1")
        nvim.hear(0.002)
        groups += 1
        if groups % 20 == 0:  # keys that come faster than the model is stopped never see an answer
            nvim.idle()
        if sent // 2000 > len(sizes):
            nvim.call("nvim_buf_set_lines", 0, 0, -1, False, SMALL.split("\n"))
            nvim.lua("collectgarbage() collectgarbage()")
            sizes.append(memory(nvim))
    nvim.until(lambda: nvim.call("nvim_get_mode")["blocking"] is False, "an end of the keys")
    nvim.keys("<Esc>")
    nvim.until(lambda: nvim.lua("return require('qwenmoe.job').count()") == 0, "the end of all jobs")
    expect(nvim.lua("return vim.v.errmsg"), "", "errors")
    counts = nvim.statistics()
    expect(counts["requests"] > 100 and counts["answers"] > 10, True, f"much was asked and answered ({counts})")
    report(f"{counts}; MiB after each 2000: {[size >> 20 for size in sizes]}")
    expect(sizes[-1] - sizes[1] < 24 << 20, True, f"no growth ({sizes})")
    nvim.finish()
