"""Chat and rewriting, and that a completion goes before them."""
from setting import Plugin, endless, expect, expect_in, report
from test_completion import BODY

QUESTION = "Write a Python function `add(a, b)` that returns the sum of two numbers."


def busy(nvim):
    return nvim.lua("return require('qwenmoe.talk').busy()")


def view(nvim, name):
    """Lines of a buffer of the plugin; None when there is none."""
    return nvim.lua("""
        local buffer = vim.fn.bufnr("^qwenmoe://" .. ... .. "$")
        return buffer > 0 and vim.api.nvim_buf_get_lines(buffer, 0, -1, false) or nil""", name)


def test_chat():
    """A question, its answer with the thoughts folded, and another one that knows the first."""
    nvim = Plugin({"chat": {"width": 60, "options": {"temperature": 0, "answer-tokens": 300}}}).ready()
    nvim.command(f"Qwen chat {QUESTION}")
    nvim.until(lambda: not busy(nvim), "the answer")
    lines = view(nvim, "chat")
    expect(lines[:2], ["## You", ""], "the head")
    expect(lines[2], QUESTION, "the question")
    expect_in("## Qwen", lines, "the answer's head")
    expect_in("def add(a, b):", "\n".join(lines), "the answer")
    nvim.until(lambda: any("[thoughts: " in line for line in nvim.screen()), "a fold")
    shown = "\n".join(nvim.screen())
    thoughts = nvim.lua("""
        local window = vim.fn.bufwinid("^qwenmoe://chat$")
        return vim.api.nvim_win_call(window, function()
            for line = 1, vim.fn.line("$") do
                if vim.fn.foldclosed(line) > 0 then return vim.fn.getline(line, vim.fn.foldclosedend(line)) end
            end
        end)""")
    expect(bool("".join(thoughts).strip()), True, "there are thoughts in the fold")
    expect(thoughts[0] in shown, False, "they are on the screen")
    expect("```" in "".join(thoughts), False, "the fold holds the answer")
    # The selection goes along with the next question.
    nvim.call("nvim_buf_set_lines", 0, 0, -1, False, ["x = 1", "y = 2"])
    nvim.command("set filetype=python")
    nvim.command("2Qwen chat And this?")
    nvim.until(lambda: not busy(nvim), "the second answer")
    expect_in("And this?\n\n```python\ny = 2\n```", "\n".join(view(nvim, "chat")), "the second question")
    held = nvim.lua("return tonumber(require('qwenmoe.library').C.qm_session_length(require('qwenmoe.model').chat[0]))")
    expect(held > 100, True, "the session holds the conversation")
    nvim.command("Qwen new")
    expect(view(nvim, "chat"), None, "the conversation after :Qwen new")
    nvim.finish()


def test_long_chat():
    """A conversation that outgrows the context loses its oldest turns, and goes on."""
    nvim = Plugin({"options": {"context": 512, "answer-tokens": 64}, "completion": {"options": {"answer-tokens": 16}},
                   "chat": {"thinking": False, "options": {"answer-tokens": 64, "temperature": 0}}}).ready()
    for i in range(10):
        nvim.command(f"Qwen chat {QUESTION} {i}")
        nvim.until(lambda: not busy(nvim), "the answer")
    lines = view(nvim, "chat")
    expect(lines.count("## Qwen"), 10, "answers")
    expect([line for line in lines if line.startswith("*") and line != "*(length)*"], [], "complaints")
    tokens = nvim.lua("return ({ require('qwenmoe.model').tokenize(...) })[2]", "\n".join(lines))
    expect(tokens > 512, True, "it was more than the context")
    nvim.finish()


def test_stop():
    nvim = Plugin(endless()).ready()
    nvim.warnings()
    nvim.command("Qwen stop")
    expect_in("nothing is being written", nvim.said(), "message")
    nvim.command("Qwen chat hello")
    nvim.until(lambda: busy(nvim) and len("".join(view(nvim, "chat"))) > 60, "an answer")
    nvim.command("Qwen chat again")
    expect_in("an answer is being written", nvim.said(), "message")
    nvim.command("Qwen stop")
    nvim.until(lambda: not busy(nvim), "the end")
    expect_in("*(stopped)*", "\n".join(view(nvim, "chat")), "the conversation")
    nvim.command("Qwen dance")
    expect_in("there is no :Qwen dance", nvim.said(), "message")
    expect(nvim.history(), "", "messages")
    nvim.finish()


def test_fold():
    """Thoughts are folded to their last line, and the answer begins behind it, whatever line ends they have."""
    nvim = Plugin(setup=False)
    for pieces, wanted in (
            ((("one\ntwo", True), ("answer", False)), ["head", "+one", "+two", "answer"]),
            ((("one\n", True), ("two\n\n", True), ("\n\nanswer\n", False), ("more", False)),
             ["head", "+one", "+two", "+", "answer", "more"]),
            ((("one", True), ("answer", False), ("again", True), ("end", False)), ["head", "+one", "answer", "+again", "end"])):
        found = nvim.lua("""
            local view = require("qwenmoe.view").open("qwenmoe://test", "text", "vsplit")
            view:append("head\\n", false)
            for _, piece in ipairs(...) do view:append(piece[1], piece[2]) end
            local lines = vim.api.nvim_win_call(view:window(), function()
                return vim.tbl_map(function(line)
                    return (vim.fn.foldclosed(line) > 0 and "+" or "") .. vim.fn.getline(line)
                end, vim.fn.range(1, vim.fn.line("$")))
            end)
            view:close()
            return lines""", [list(piece) for piece in pieces])
        expect(found, wanted, f"lines of {pieces}")
    nvim.finish()


def test_end_thinking():
    """:Qwen answer ends the thoughts of an answer that would think for ever; it goes on outside the fold."""
    nvim = Plugin(endless()).ready()
    nvim.command(f"Qwen chat {QUESTION}")

    def shown():
        """The line in which the thoughts end, 0 before they begin, and the number of lines."""
        return nvim.lua("""
            local buffer = vim.fn.bufnr("^qwenmoe://chat$")
            local window = vim.fn.bufwinid(buffer)
            local last = vim.api.nvim_buf_line_count(buffer)
            return vim.api.nvim_win_call(window, function()
                for line = last, 1, -1 do
                    if vim.fn.foldclosed(line) > 0 then return { line, last } end
                end
                return { 0, last }
            end)""")

    nvim.until(lambda: 0 < shown()[0] == shown()[1], "thinking")
    nvim.command("Qwen answer")
    nvim.until(lambda: 0 < shown()[0] < shown()[1], "an answer after the thoughts")
    expect(busy(nvim), True, "the answer goes on")
    nvim.finish()


def test_commands():
    """Completions off and on; the model gone and back; the state shown; names completed."""
    nvim = Plugin().ready()
    expect(nvim.lua("return vim.fn.getcompletion('Qwen re', 'cmdline')"), ["reject", "rewrite"], "completed names")
    nvim.command("silent Qwen disable")
    nvim.open(BODY, 6, 3)
    nvim.keys("x")
    nvim.until(lambda: nvim.lines()[5] == "    x", "typing")
    expect(nvim.statistics()["requests"], 0, "requests while off")
    nvim.command("silent Qwen toggle")
    nvim.keys("y")
    nvim.answered()
    nvim.keys("<Esc>")
    nvim.command("Qwen unload")
    expect(nvim.state(), "unloaded", "state after :Qwen unload")
    nvim.command("Qwen load")
    nvim.ready()
    nvim.keys("A = ")
    nvim.until(lambda: nvim.statistics()["answers"] > 1, "an answer of the model that was loaded again")
    nvim.keys("<Esc>")
    status = nvim.call("nvim_exec", "Qwen status", True)
    for part in ("model: ready", "qwenmoe-py", "completions: on"):
        expect_in(part, status, "the status")
    nvim.command("silent messages clear")
    nvim.finish()


def test_rewrite():
    """The result is a difference until it is accepted; rejected, or with the text changed meanwhile, nothing happens."""
    base = ["import os", "", "def add(a, b):", "    return a - b", "", "print(add(1, 2))"]
    nvim = Plugin({"chat": {"options": {"temperature": 0, "answer-tokens": 300}}}).ready()
    nvim.command("edit sum.py")
    nvim.command("set filetype=python hidden")
    nvim.call("nvim_buf_set_lines", 0, 0, -1, False, base)
    nvim.warnings()

    def preview():
        nvim.command(f"3,4Qwen rewrite {QUESTION}")
        nvim.until(lambda: not busy(nvim), "the answer")
        return view(nvim, "rewrite")

    lines = preview()
    expect_in("Rewrite of sum.py, 2 lines", lines[0], "the head")
    expect_in("a accepts, r rejects", lines[1], "the head")
    marked = next(i for i, line in enumerate(lines) if line.startswith("@@ "))
    result = [line[1:] for line in lines[marked + 1:] if line[:1] in (" ", "+")]
    removed = [line[1:] for line in lines[marked + 1:] if line[:1] in (" ", "-")]
    expect(removed, base[2:4], "the old text in the difference")
    expect_in("def add(a, b):", "\n".join(result), "the new text")
    nvim.until(lambda: any("[thoughts: " in line for line in nvim.screen()), "a fold")
    expect(nvim.lines(), base, "the buffer before accepting")
    nvim.command("wincmd b")
    nvim.keys("r")
    nvim.until(lambda: view(nvim, "rewrite") is None, "closing")
    expect(nvim.lines(), base, "the buffer after rejecting")
    preview()
    nvim.command("wincmd b")
    nvim.keys("a")
    nvim.until(lambda: view(nvim, "rewrite") is None, "closing")
    expect(nvim.lines(), base[:2] + result + base[4:], "the buffer after accepting")
    nvim.command("silent undo")
    expect(nvim.lines(), base, "the buffer after one undo")
    # Lines above may come and go; the text itself may not.
    preview()
    nvim.call("nvim_buf_set_lines", 0, 0, 0, False, ["# above"])
    nvim.command("Qwen accept")
    expect(nvim.lines(), ["# above"] + base[:2] + result + base[4:], "the buffer after a line above")
    nvim.command("silent undo | silent undo")
    preview()
    nvim.call("nvim_buf_set_lines", 0, 3, 4, False, ["    return a * b"])
    nvim.command("Qwen accept")
    expect_in("the selected text has changed", nvim.said(), "message")
    expect(nvim.lines()[3], "    return a * b", "the changed line")
    nvim.command("Qwen reject")
    nvim.command("Qwen accept")
    expect_in("there is no rewrite to accept", nvim.said(), "message")
    expect(nvim.history(), "", "messages")
    nvim.finish()


def test_completion_first():
    """A completion asked for during a long answer, or while its prompt is computed, comes first. Reported: after how long."""
    endless_chat = {"options": {**endless()["chat"]["options"], "context": 16384}}
    nvim = Plugin({"options": {"context": 16384}, "chat": endless_chat, "completion": {"delay": 0}}).ready()
    nvim.open(BODY, 6, 3)
    nvim.offered()
    nvim.keys("<Esc>")

    def times(keys):
        found = []
        for key in keys:
            before = nvim.statistics()["answers"]
            nvim.keys(key)
            nvim.until(lambda: nvim.statistics()["answers"] > before or nvim.ghost(), "a completion")
            nvim.idle()
            found.append(nvim.lua("return require('qwenmoe.complete').first_ms"))
        expect(busy(nvim), True, "the answer still goes on")
        return " ".join(f"{t:.0f}" for t in found)

    long = "\n".join(f"value_{i} = {i * i}" for i in range(400))
    nvim.lua("require('qwenmoe.chat').ask('Explain this.', { text = ..., filetype = 'python' })", long)
    nvim.keys("A")
    report("first text of a completion while a long prompt is computed, ms from the request: " + times("abcd"))
    nvim.until(lambda: "## Qwen" in view(nvim, "chat") and view(nvim, "chat")[-1], "the answer")
    report("... while the answer is written: " + times("efghijkl"))
    nvim.finish()
