"""What the tests of the Neovim plugin share: an editor with the plugin in it, and questions to ask of it."""
import os
import pathlib
import subprocess
import sys

import editor

top = pathlib.Path(__file__).resolve().parents[2]
GREY = 0x7f7f7f
prefix = library = model = program = None  # set by use()

SETUP = """
vim.opt.rtp:prepend(...)
vim.g.loaded_python3_provider = 0 -- the file type would start Python to look for it, which takes long
vim.cmd("filetype plugin indent on")
vim.cmd("runtime plugin/qwenmoe.lua")
vim.o.termguicolors = true
vim.api.nvim_set_hl(0, "QwenmoeGhost", { fg = "#7f7f7f" })
"""


def use(folder):
    """Takes library, model and program from the prefix in which they are installed."""
    global prefix, library, model, program
    prefix, model, program = folder, folder / "share/qwenmoe/qwenmoe-py.gguf", folder / "bin/qwenmoe"
    library = next(folder.glob("lib*/**/libqwenmoe.so"))


def endless():
    """Settings with which every answer is aaaa... and never ends."""
    letter = subprocess.run([program, "tokenize", "-m", model, "--ids", "a"], capture_output=True, text=True, check=True).stdout
    options = {"answer-tokens": 0, "ignore-end": True, "logit-bias": f"{int(letter)}:1000"}
    return {"completion": {"max_lines": 9999, "options": options}, "chat": {"options": options}}


class Plugin(editor.Editor):
    """An editor with the plugin set up by `settings`; library and model are those of the test unless named.
    setup False: not set up; None: not even there."""

    def __init__(self, settings=None, setup=True, **more):
        super().__init__(**more)
        if setup is not None:
            self.lua(SETUP, str(top / "bindings/nvim"))
        if setup:
            self.setup(settings or {})

    def setup(self, settings):
        self.lua("require('qwenmoe').setup(...)", {"library": str(library), "model": str(model), **settings})

    def ready(self):
        self.until(lambda: self.state() == "ready", "loading the model")
        if os.sched_getscheduler(0) == os.SCHED_FIFO:
            # Measured ahead of the machine's other work (chrt -f 1), the editor's thread has to stay ahead of those that compute.
            os.sched_setscheduler(self.process.pid, os.SCHED_FIFO, os.sched_param(os.sched_getparam(0).sched_priority + 1))
        return self

    def state(self):
        return self.lua("return require('qwenmoe.model').state")

    def open(self, text, row, column, filetype="python"):
        """A buffer with this text, and insert mode at a place (row from 1, column in bytes)."""
        self.command("enew!")
        self.command(f"set filetype={filetype}")
        self.call("nvim_buf_set_lines", 0, 0, -1, False, text.split("\n"))
        self.call("nvim_win_set_cursor", 0, [row, column])
        self.keys("a" if column else "i")
        self.until(lambda: self.call("nvim_get_mode")["mode"] == "i", "insert mode")

    def ghost(self):
        return self.lua("return require('qwenmoe').text()")

    def idle(self):
        """Nothing is asked or computed any more."""
        self.until(lambda: self.lua("return not require('qwenmoe.complete').busy()"), "the end of the request")

    def answered(self):
        """Waits until the first request is answered, whatever was answered."""
        self.until(lambda: self.statistics()["answers"] > 0, "an answer")
        self.idle()

    def offered(self):
        """Waits for a whole first completion, and returns its text."""
        self.answered()
        return self.until(self.ghost, "a completion")

    def statistics(self):
        return self.lua("return require('qwenmoe.complete').statistics")

    def history(self):
        """What was shown as messages."""
        return self.call("nvim_exec", "messages", True).strip()

    def warnings(self):
        """Catches what is said by vim.notify from now on."""
        self.lua("_G.said = {} vim.notify = function(text) table.insert(_G.said, text) end")

    def said(self):
        return "\n".join(self.lua("return _G.said"))

    def grey(self):
        """The grey text on the screen, without its indentation."""
        return "\n".join(line.strip() for line in self.text_in(GREY) if line.strip())

    def finish(self):
        messages = self.history()
        code = self.close()
        expect(code, 0, "exit code")
        expect(messages, "", "messages")


def expect(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def expect_in(part, text, what):
    if part not in text:
        raise AssertionError(f"{what}: no {part!r} in {text!r}")


def report(text):
    print("    " + text)
    sys.stdout.flush()
