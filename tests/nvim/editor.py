"""A real Neovim, driven as an editor's window would: keys go in by RPC, and the screen that it draws is kept.

Neovim speaks MessagePack over its standard streams; the little of it that is needed is here.
"""
import os
import selectors
import struct
import subprocess
import time


def pack(value):
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + struct.pack(">I", len(data)) + data
    if isinstance(value, (list, tuple)):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())
    raise TypeError(value)


class Incomplete(Exception):
    pass


class Unpacker:
    def __init__(self):
        self.data, self.at = b"", 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise Incomplete
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def value(self):
        byte = self.take(1)[0]
        if byte < 0x80 or byte >= 0xe0:
            return byte if byte < 0x80 else byte - 256
        if byte < 0x90:
            return self.map(byte & 15)
        if byte < 0xa0:
            return self.list(byte & 15)
        if byte < 0xc0:
            return self.text(byte & 31)
        if byte in (0xc0, 0xc2, 0xc3):
            return {0xc0: None, 0xc2: False, 0xc3: True}[byte]
        numbers = {0xca: "f", 0xcb: "d", 0xcc: "B", 0xcd: "H", 0xce: "I", 0xcf: "Q", 0xd0: "b", 0xd1: "h", 0xd2: "i", 0xd3: "q"}
        if byte in numbers:
            return self.number(numbers[byte])
        sized = {0xc4: ("B", self.text), 0xc5: ("H", self.text), 0xc6: ("I", self.text), 0xd9: ("B", self.text),
                 0xda: ("H", self.text), 0xdb: ("I", self.text), 0xdc: ("H", self.list), 0xdd: ("I", self.list),
                 0xde: ("H", self.map), 0xdf: ("I", self.map)}
        if byte in sized:
            form, read = sized[byte]
            return read(self.number(form))
        if 0xd4 <= byte <= 0xd8:  # a handle of a buffer, window or tab page
            return self.take(1 + (1 << (byte - 0xd4)))[1:]
        if byte == 0xc7:
            return self.take(self.number("B") + 1)[1:]
        raise ValueError(f"byte {byte:#x} in MessagePack")

    def text(self, count):
        return self.take(count).decode(errors="surrogateescape")

    def list(self, count):
        return [self.value() for _ in range(count)]

    def map(self, count):
        return {self.value(): self.value() for _ in range(count)}


class Failed(Exception):
    """What Neovim answered instead of a result."""


class Editor:
    def __init__(self, arguments=(), columns=100, rows=30, environment=None, program="nvim"):
        self.columns, self.rows = columns, rows
        self.grid = [[(" ", 0)] * columns for _ in range(rows)]
        self.highlights, self.cursor, self.messages = {}, (0, 0), []
        self.unpacker, self.serial, self.answers = Unpacker(), 0, {}
        self.process = subprocess.Popen([program, "--embed", "--clean", "-n", *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.call("nvim_ui_attach", columns, rows, {"rgb": True, "ext_linegrid": True})

    # ---- RPC ----

    def hear(self, timeout):
        """Takes what has come, waiting for at most this many seconds; False when Neovim has gone."""
        if not self.selector.select(timeout):
            return True
        data = self.process.stdout.read()
        if not data:
            return False
        unpacker = self.unpacker
        unpacker.data += data
        while True:
            unpacker.at = 0
            try:
                message = unpacker.value()
            except Incomplete:
                return True
            unpacker.data = unpacker.data[unpacker.at:]
            if message[0] == 1:
                self.answers[message[1]] = message[2:]
            elif message[0] == 2 and message[1] == "redraw":
                self.redraw(message[2])

    def send(self, method, *arguments):
        self.serial += 1
        self.process.stdin.write(pack([0, self.serial, method, list(arguments)]))
        self.process.stdin.flush()
        return self.serial

    def call(self, method, *arguments, timeout=180):
        serial, end = self.send(method, *arguments), time.monotonic() + timeout
        while serial not in self.answers:
            if not self.hear(0.1):
                raise Failed(f"Neovim has gone during {method}")
            if time.monotonic() > end:
                raise Failed(f"no answer to {method}; the screen:\n" + "\n".join(self.screen()))
        error, result = self.answers.pop(serial)
        if error:
            raise Failed(error[1] if isinstance(error, list) else error)
        return result

    def lua(self, code, *arguments):
        return self.call("nvim_exec_lua", code, list(arguments))

    def command(self, text):
        return self.call("nvim_command", text)

    def keys(self, text):
        """As typed: handed to the input queue, which the editor empties in its own time."""
        self.call("nvim_input", text)

    def lines(self):
        return self.call("nvim_buf_get_lines", 0, 0, -1, False)

    def until(self, condition, what, timeout=180):
        """Waits until condition() is true, and returns what it gave."""
        end = time.monotonic() + timeout
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not happen; the screen:\n" + "\n".join(self.screen()))
            self.hear(0.01)

    def close(self):
        """Quits as a person would, and returns the exit code; it must not take long."""
        self.send("nvim_command", "qa!")
        end = time.monotonic() + 20
        while self.hear(0.1) and time.monotonic() < end:
            pass
        try:
            return self.process.wait(max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "had to be killed"
        finally:
            self.process.stdin.close()
            self.process.stdout.close()
            self.selector.close()

    # ---- the screen ----

    def redraw(self, events):
        for name, *calls in events:
            handle = getattr(self, "on_" + name, None)
            for arguments in calls if handle else ():
                handle(*arguments)

    def on_grid_resize(self, _, columns, rows):
        self.columns, self.rows = columns, rows
        self.grid = [[(" ", 0)] * columns for _ in range(rows)]

    def on_grid_clear(self, _):
        self.on_grid_resize(_, self.columns, self.rows)

    def on_grid_line(self, _, row, column, cells, *_more):
        highlight = 0
        for text, *more in cells:
            highlight = more[0] if more else highlight
            for _ in range(more[1] if len(more) > 1 else 1):
                self.grid[row][column] = (text, highlight)
                column += 1

    def on_grid_scroll(self, _, top, bottom, left, right, by, *_more):
        rows = range(top, bottom - by) if by > 0 else range(bottom - 1, top - by - 1, -1)
        for row in rows:
            self.grid[row][left:right] = self.grid[row + by][left:right]

    def on_grid_cursor_goto(self, _, row, column):
        self.cursor = (row, column)

    def on_hl_attr_define(self, number, rgb, _terminal, _info):
        self.highlights[number] = rgb

    def on_default_colors_set(self, foreground, background, *_more):
        self.default_colours = (foreground, background)

    def screen(self):
        """Its lines as text."""
        return ["".join(text for text, _ in row).rstrip() for row in self.grid]

    def text_in(self, colour):
        """Lines of the screen with only the characters of this foreground colour; others are blank."""
        def keep(cell):
            return cell[0] if self.highlights.get(cell[1], {}).get("foreground") == colour else " "
        return ["".join(map(keep, row)).rstrip() for row in self.grid]
