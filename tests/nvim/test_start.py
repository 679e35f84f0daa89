"""Loading, settings, health, help, and quitting at a bad moment."""
import pathlib
import subprocess
import tempfile

import setting
from setting import Plugin, endless, expect, expect_in, top

BODY = "def count_lines(path):\n\n\ndef main():\n    print(count_lines('x'))"


def test_interface():
    """Every function of the interface is declared, and is in the library."""
    nvim = Plugin().ready()
    names = (top / "tests/abi/symbols.txt").read_text().split()
    missing = nvim.lua("""
        local C, missing = require("qwenmoe.library").C, {}
        for _, name in ipairs(...) do
            if not pcall(function() return C[name] end) then table.insert(missing, name) end
        end
        return missing""", names)
    expect(missing, [], "functions that cannot be called")
    nvim.finish()


def failure(settings, **more):
    """What a setup that cannot load says; the editor goes on."""
    nvim = Plugin(setup=False, **more)
    nvim.warnings()
    nvim.setup(settings)
    nvim.until(lambda: nvim.state() == "failed", "failing to load")
    said = nvim.said()
    nvim.open(BODY, 2, 0)
    nvim.keys("x = 1<Esc>")
    nvim.until(lambda: nvim.lines()[1] == "x = 1", "typing")
    nvim.command("silent checkhealth qwenmoe")
    health = "\n".join(nvim.lines())
    nvim.finish()
    return said, health


def test_load_failure():
    said, health = failure({"library": "/no/such/libqwenmoe.so"})
    expect_in("cannot open the library", said, "message")
    expect_in("/no/such/libqwenmoe.so", said, "message")
    expect_in("ERROR", health, "health")
    expect_in("QWENMOE_LIBRARY", health, "health")
    expect_in("it is not libqwenmoe", failure({"library": "libm.so.6"})[0], "message")
    said, health = failure({"model": "/no/such/model.gguf"})
    expect_in("/no/such/model.gguf", said, "message")
    expect_in("/no/such/model.gguf", health, "health")
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(b"GGUF but not one")
        file.flush()
        expect_in(file.name, failure({"model": file.name})[0], "message")
    # A model without the marks of fill-in-the-middle loads, chats, and says that it cannot complete.
    nvim = Plugin({"model": str(top / "tests/data/oracle/qwen35moe.gguf")}).ready()
    nvim.open(BODY, 2, 0)
    nvim.keys("x")
    expect_in("cannot complete", "\n".join(nvim.lua("return require('qwenmoe').status()")), "status")
    nvim.finish()


def test_places():
    """The library is found by the environment, and by pkg-config; the model beside it."""
    for way in ("environment", "pkg-config"):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "lib").mkdir()
            (root / "share/qwenmoe").mkdir(parents=True)
            (root / "lib/libqwenmoe.so").symlink_to(setting.library)
            (root / "share/qwenmoe/qwenmoe-py.gguf").symlink_to(setting.model)
            (root / "lib/qwenmoe.pc").write_text(f"libdir={root}/lib\nName: qwenmoe\nDescription: x\nVersion: 0.1.0\n")
            found = {"QWENMOE_LIBRARY": str(root / "lib/libqwenmoe.so")}
            if way == "pkg-config":
                found = {"QWENMOE_LIBRARY": "", "PKG_CONFIG_PATH": str(root / "lib")}
            nvim = Plugin(setup=False, environment={**found, "QWENMOE_MODEL": ""})
            nvim.lua("require('qwenmoe').setup()")
            nvim.ready()
            expect(nvim.lua("return require('qwenmoe.library').path"), str(root / "lib/libqwenmoe.so"), f"library by {way}")
            nvim.finish()


def test_first_result():
    """What README says, with the plugin that was installed: setup() in init.lua, then a file, some words, and grey text."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write('require("qwenmoe").setup()\n')
        file.flush()
        nvim = Plugin(setup=None, arguments=["-u", file.name, "--cmd", "let g:loaded_python3_provider = 0"], environment={
            "XDG_DATA_DIRS": f"{setting.prefix}/share:/usr/local/share:/usr/share", "QWENMOE_MODEL": "",
            "QWENMOE_LIBRARY": "", "PKG_CONFIG_PATH": str(next(setting.prefix.glob("**/pkgconfig")))})
        nvim.ready()
        nvim.command("edit x.py")
        nvim.keys("idef add(a, b):<CR>")
        nvim.offered()
        nvim.command("silent checkhealth qwenmoe")
        expect_in("it can complete", "\n".join(nvim.lines()), "health")
        nvim.command("help qwenmoe")
        nvim.finish()


def test_settings():
    nvim = Plugin(setup=False)
    nvim.warnings()
    for settings, wanted in (
            ({"colour": "red"}, "there is no setting colour"),
            ({"completion": {"delay": "soon"}}, "setting completion.delay is \"soon\"; it takes a number"),
            ({"completion": {"delay": -1}}, "it takes a whole number from 0"),
            ({"keys": {"accept": 5}}, "setting keys.accept is 5; it takes a string, or false for none"),
            ({"chat": {"thinking": "no"}}, "setting chat.thinking is \"no\"; it takes a boolean"),
            ({"completion": 3}, "setting completion is 3; it takes a table")):
        nvim.setup(settings)
        expect_in(wanted, nvim.said(), f"message about {settings}")
    expect(nvim.state(), "unloaded", "state after wrong settings")
    # Those of the library are judged by its own table, when it is there.
    for settings, wanted in (
            ({"options": {"temprature": 1}}, "options.temprature: "),
            ({"options": {"threads": 100000}}, "options.threads: "),
            ({"options": {"kv_type": "f8"}}, "options.kv_type: "),
            ({"completion": {"options": {"threads": 2}}}, "completion.options.threads: it is read when the model is loaded"),
            ({"chat": {"options": {"top-p": "much"}}}, "chat.options.top-p: ")):
        nvim.warnings()
        nvim.setup(settings)
        nvim.until(lambda: nvim.state() == "failed", f"refusing {settings}")
        expect_in(wanted, nvim.said(), f"message about {settings}")
        nvim.lua("require('qwenmoe').unload()")
    expect_in("temperature", nvim.lua("""
        return table.concat(require("qwenmoe.config").check_options({ options = { temprature = 1 },
            completion = { options = {} }, chat = { options = {} } }))"""), "the nearest name")
    # Right ones reach the sessions.
    nvim.setup({"options": {"threads": 1, "kv_type": "f32"}, "completion": {"options": {"answer-tokens": 7, "stop": ["a", "b"]}}})
    nvim.ready()
    ask = """
        local library, name = require("qwenmoe.library"), ...
        return library.text(function(buffer, size)
            return library.C.qm_session_get(require("qwenmoe.model").completion[0], name, buffer, size)
        end)"""
    expect(nvim.lua(ask, "answer-tokens"), "7", "answer-tokens")
    expect(nvim.lua(ask, "temperature"), "0", "temperature")
    expect(nvim.lua(ask, "stop").replace(" ", ""), '["a","b"]', "stop")
    nvim.finish()


def test_health():
    nvim = Plugin().ready()
    nvim.command("silent checkhealth qwenmoe")
    text = "\n".join(nvim.lines())
    for part in ("LuaJIT", "libqwenmoe 0.", "the settings are right", "qwenmoe-py", "it can complete"):
        expect_in(part, text, "health")
    if "ERROR" in text or "WARNING" in text:
        raise AssertionError(text)
    nvim.finish()


def test_help():
    """The help has tags, and speaks of every setting and command."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cp", "-r", str(top / "bindings/nvim/doc"), folder], check=True)
        nvim = Plugin(setup=False)
        nvim.lua("vim.opt.rtp:prepend(...)", folder)
        nvim.command(f"helptags {folder}/doc")
        expect((top / "bindings/nvim/doc/tags").read_text(), pathlib.Path(folder, "doc/tags").read_text(), "doc/tags (helptags)")
        for tag in ("qwenmoe", "qwenmoe-settings", ":Qwen", "qwenmoe-keys"):
            nvim.command(f"help {tag}")
            expect_in("qwenmoe.txt", nvim.call("nvim_buf_get_name", 0), f"help {tag}")
        text = "\n".join(nvim.lines())
        names = nvim.lua("""
            local names = {}
            local function add(table_, path)
                for name, value in pairs(table_) do
                    table.insert(names, name)
                    if type(value) == "table" then add(value) end
                end
            end
            add(require("qwenmoe.config").defaults)
            return vim.list_extend(names, vim.tbl_map(function(name) return "Qwen " .. name end,
                require("qwenmoe.command").complete("")))""")
        for name in names + ["library", "model", "system", "thinking"]:
            expect_in(name, text, "the help")
        if max(map(len, text.split("\n"))) > 80:
            raise AssertionError("the help has lines over 80 columns")
        nvim.finish()


def test_quit():
    """At once, while loading, during a completion, a chat answer, and a prompt."""
    expect(Plugin().close(), 0, "exit code while loading")
    nvim = Plugin(endless()).ready()
    nvim.open(BODY, 2, 0)
    nvim.until(nvim.ghost, "a completion")
    expect(nvim.close(), 0, "exit code during a completion")
    nvim = Plugin(endless()).ready()
    nvim.command("Qwen chat hello")
    nvim.until(lambda: nvim.lua("return require('qwenmoe.talk').busy()"), "an answer")
    expect(nvim.close(), 0, "exit code during an answer")
    nvim = Plugin().ready()
    nvim.open("\n".join(f"value_{i} = {i * i}\n" for i in range(300)), 400, 0)
    nvim.until(lambda: nvim.lua("return require('qwenmoe.complete').busy()"), "a request")
    expect(nvim.close(), 0, "exit code during a prompt")
