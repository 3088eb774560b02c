"""Draw what a command prints in a terminal as an SVG file.

    python docs/scripts/terminal.py --out docs/run.svg -- kdbench run --methods stfpm,dcam --categories wood

The command runs in a terminal of its own. The drawing has the lines that are there at the end: bars that move
are not in it. Its letters are those of the reader's machine, and nothing is fetched.
"""

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

# Cursor moves of bars. What rich writes has no others.
MOVE = re.compile(r"\x1b\[(\d*)([AK])|\x1b\[\?\d+[hl]|(\r\n?|\n)")
FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)  # rich names addresses there


def recorded(command: list[str], width: int) -> tuple[str, int]:
    """What a command writes to its standard output, a terminal of this width, and its exit code."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(width)}
    process = subprocess.Popen(command, stdin=its, stdout=its, env=environment)
    os.close(its)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # how Linux says that nobody writes to the terminal any more
        pass
    os.close(ours)
    return b"".join(parts).decode(), process.wait()


def screen(output: str) -> list[str]:
    """The lines that are left when every move of the cursor has been made, with their colours."""
    lines, at, end = [""], 0, 0
    for move in MOVE.finditer(output):
        lines[at] += output[end : move.start()]
        end = move.end()
        number, kind, newline = move.groups()
        if kind == "A":
            at = max(0, at - int(number or 1))
        elif kind == "K":
            lines[at] = ""
        elif newline and newline.endswith("\n"):
            at += 1
            if at == len(lines):
                lines.append("")
        elif newline:
            lines[at] = ""  # a line that is written anew
    lines[at] += output[end:]
    return lines


def drawing(lines: list[str], title: str, width: int) -> str:
    """The lines as SVG, below a title."""
    console = Console(
        record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(Text.from_ansi(line))
    console.print()  # the drawing cuts its last line through the letters p and g
    svg = console.export_svg(title=title, theme=SVG_EXPORT_THEME, unique_id="terminal")
    svg = FONT_FACE.sub("", svg).replace("Fira Code, monospace", "monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    """Run the command, then write the file; leave with the command's exit code if it failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    output, code = recorded(asked.command, asked.width)
    if code:
        sys.exit(f"{output}\nthe command left with {code}: nothing was drawn")
    shown = " ".join(asked.command)
    lines = [f"\x1b[1m$ {shown}\x1b[0m", *filter(None, screen(output))]
    asked.out.write_text(drawing(lines, "kdbench", asked.width), encoding="utf-8")


if __name__ == "__main__":
    main()
