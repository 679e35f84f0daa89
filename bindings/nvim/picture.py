#!/usr/bin/env python3
"""Draws the picture in README.md: the screen of a real Neovim in which a completion is offered.

    bindings/nvim/picture.py PREFIX OUT.svg     PREFIX is where the library is installed
"""
import importlib.util
import pathlib
import sys

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent / "tests/nvim"))
import setting  # noqa: E402: found by the line above

FILE = """import json


def load(path):
    with open(path) as file:
        return json.load(file)


"""
TYPED = "def save(path, value):<CR>"
COLOURS = """
    vim.o.termguicolors, vim.o.ruler, vim.o.laststatus = true, false, 0
    vim.o.number, vim.o.fillchars = true, "eob: "
    local colours = { Normal = "#d6deeb", QwenmoeGhost = "#7f8fa6", LineNr = "#4b5a70", CursorLineNr = "#4b5a70",
        Statement = "#c099e0", PreProc = "#c099e0", Function = "#82aaff", ModeMsg = "#82c97f" }
    for group, colour in pairs(colours) do
        vim.api.nvim_set_hl(0, group, { fg = colour })
    end"""


def load_drawing():
    spec = importlib.util.spec_from_file_location("drawing", here.parent.parent / "examples/picture.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    return drawing


class Colours(dict):
    """The styles of a screen are its colours."""
    def __missing__(self, colour):
        return colour


def cells(nvim):
    """Lines of (character, colour)."""
    def colour(highlight):
        return f"#{nvim.highlights.get(highlight, {}).get('foreground', 0xd6deeb):06x}"
    return [[(text or " ", colour(highlight)) for text, highlight in row] for row in nvim.grid]


def cursor(nvim, drawing):
    """The bar before the next character."""
    row, column = nvim.cursor
    x, y = drawing.MARGIN + column * drawing.CHARACTER, drawing.BAR + drawing.MARGIN + row * drawing.LINE - 14
    return f'<rect x="{x - 1:.1f}" y="{y}" width="2" height="18" fill="#ffffff"/>\n'


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    setting.use(pathlib.Path(sys.argv[1]).resolve())
    drawing = load_drawing()
    drawing.STYLES, drawing.COLUMNS = Colours(), 64
    nvim = setting.Plugin({}, columns=64, rows=14).ready()
    nvim.lua(COLOURS)
    nvim.command("silent edit store.py")
    nvim.command("syntax on")
    nvim.call("nvim_buf_set_lines", 0, 0, -1, False, FILE.split("\n")[:-1])
    nvim.keys("Go" + TYPED)
    nvim.until(lambda: len(nvim.lines()) > FILE.count("\n") + 1, "typing")
    nvim.until(nvim.ghost, "a completion")
    nvim.idle()
    nvim.until(lambda: nvim.text_in(0x7f8fa6)[FILE.count("\n") + 1], "the grey text")
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(drawing.draw(cells(nvim)).replace("</g>", cursor(nvim, drawing) + "</g>"))
    nvim.close()


if __name__ == "__main__":
    main()
