#!/usr/bin/env python3
"""Draws what commands print on a terminal as an SVG: the picture in README.md.

    examples/picture.py OUT.svg 'qwenmoe run ...' ['another command' ...]

Each command runs in a real pseudo-terminal, so the picture shows what a person sees. Understood are the few controls that the
program uses: bold, dim, reset, carriage return, erase to the end of the line.
"""
import html
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

COLUMNS, CHARACTER, LINE, MARGIN, BAR = 100, 8.4, 19, 18, 34
STYLES = {"": "#d6deeb", "dim": "#7f8fa6", "bold": "#ffffff", "prompt": "#82c97f"}


def record(command):
    """All that the command writes to its terminal."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, COLUMNS))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=its, stderr=its, env=environment)
    os.close(its)
    data = b""
    try:
        while chunk := os.read(ours, 65536):
            data += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    if process.wait() != 0:
        sys.exit(f"{command}: exit status {process.returncode}\n{data.decode(errors='replace')}")
    return data.decode()


def screen(text):
    """Lines of (character, style), as they stand at the end."""
    lines, column, style = [[]], 0, ""
    for control, character in re.findall(r"\033\[([0-9;]*[A-Za-z])|(.|\n)", text):
        line = lines[-1]
        if control in ("0m", "m"):
            style = ""
        elif control in ("1m", "2m"):
            style = "bold" if control == "1m" else "dim"
        elif control == "K":
            del line[column:]
        elif character == "\n":
            lines.append([])
            column = 0
        elif character == "\r":
            column = 0
        elif character == "\t":
            column += 8 - column % 8
        elif character >= " ":
            line.extend([(" ", "")] * (column + 1 - len(line)))
            line[column] = (character, style)
            column += 1
            if column == COLUMNS:
                lines.append([])
                column = 0
    return lines


def runs(line):
    """Neighbours of one style together: (column, style, text)."""
    start = 0
    for i in range(1, len(line) + 1):
        if i == len(line) or line[i][1] != line[start][1]:
            yield start, line[start][1], "".join(character for character, _ in line[start:i])
            start = i


def draw(lines):
    while lines and not lines[-1]:
        lines.pop()
    width, height = MARGIN * 2 + COLUMNS * CHARACTER, BAR + MARGIN * 2 + len(lines) * LINE
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">',
           f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#10151e"/>']
    for i, colour in enumerate(("#e0655c", "#e0b04f", "#69b567")):
        out.append(f'<circle cx="{MARGIN + 6 + i * 20}" cy="{BAR / 2 + 3:.0f}" r="6" fill="{colour}"/>')
    out.append('<g font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="14" xml:space="preserve">')
    for number, line in enumerate(lines):
        y = BAR + MARGIN + number * LINE
        for column, style, text in runs(line):
            if text.strip():
                weight = ' font-weight="bold"' if style in ("bold", "prompt") else ""
                out.append(f'<text x="{MARGIN + column * CHARACTER:.1f}" y="{y}" textLength="{len(text) * CHARACTER:.1f}" '
                           f'fill="{STYLES[style]}"{weight}>{html.escape(text)}</text>')
    return "\n".join(out + ["</g>", "</svg>", ""])


def main():
    target, commands = sys.argv[1], sys.argv[2:]
    lines = []
    for command in commands:
        if lines and lines[-1]:
            lines.append([])
        shown = textwrap.wrap(command, COLUMNS - 2, subsequent_indent="    ", break_on_hyphens=False)
        lines += [[(c, "prompt") for c in "$ "] + [(c, "bold") for c in shown[0]]]
        lines += [[(c, "bold") for c in "  " + line] for line in shown[1:]]
        lines += screen(record(command))
    with open(target, "w", encoding="utf-8") as file:
        file.write(draw(lines))


if __name__ == "__main__":
    main()
