"""Record a command in a terminal and draw its output as an SVG picture.

    python -m tools.terminal_picture --out docs/demo.svg --keep '^▸' --pair 'json-01' -- tourkit demo

The command runs in a pseudo-terminal, so it prints what a person would see. Every line of the picture was printed by
the command: --keep and --pair select lines, and a line that is wider than the window ends with `…`. The window's title
says how many lines of the output it shows. The same output gives the same bytes.
"""

from __future__ import annotations

import argparse
import errno
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
FONT_SIZE, LINE_HEIGHT = 14, 20  # pixels
ADVANCE = 0.602 * FONT_SIZE  # pixels from one character to the next in the widest of these fonts
MARGIN, TITLE_BAR = 18, 38  # pixels

INK, DIM, HEADING, COMMAND, GOOD, BAD = "#d6deeb", "#7f8ea3", "#82aaff", "#c3e88d", "#7fdbca", "#ffcb6b"
# A line takes the colour of the first rule that it matches.
COLOURS = (
    (re.compile(r"^▸"), HEADING),
    (re.compile(r"^\s*\$ "), COMMAND),
    (re.compile(r"^\s+= "), GOOD),
    (re.compile(r"^\s+≠ "), BAD),
    (re.compile(r"^\s+\d+ of \d+ (facts|answers|fields|documents)|^All steps"), COMMAND),
    (re.compile(r"^\s{4}\S"), DIM),
)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


def record(command: Sequence[str], columns: int) -> list[str]:
    """Run the command in a pseudo-terminal of this width and return the lines it leaves on the screen.

    Raises CalledProcessError if the command fails: a picture of a failure is not wanted.
    """
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    output = bytearray()
    while block := _read(leader):
        output += block
    os.close(leader)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, list(command), output.decode(errors="replace"))
    return screen_lines(output.decode("utf-8", errors="replace"))


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # Linux reports the end of a pseudo-terminal in this way
            return b""
        raise


def screen_lines(output: str) -> list[str]:
    """The lines as they stay on the screen: without control sequences, and without what `\\r` has overwritten."""
    lines = ESCAPE.sub("", output).replace("\r\n", "\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]


def select(lines: Sequence[str], keep: Sequence[str], pair: Sequence[str], most: int) -> list[str]:
    """At most `most` lines: those that match a pattern of `keep`, and those that match one of `pair` with the next.

    Without patterns, every line that is not empty.
    """
    if not keep and not pair:
        return [line for line in lines if line][:most]
    chosen: set[int] = set()
    for i, line in enumerate(lines):
        if any(re.search(pattern, line) for pattern in keep):
            chosen.add(i)
        if any(re.search(pattern, line) for pattern in pair):
            chosen.update((i, i + 1))
    return [lines[i] for i in sorted(chosen) if i < len(lines)][:most]


def draw(lines: Sequence[str], title: str, columns: int) -> str:
    """The lines in a dark window of `columns` characters, as SVG."""
    width = round(columns * ADVANCE + 2 * MARGIN)
    height = TITLE_BAR + len(lines) * LINE_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#0f1724"/>',
        f'<path d="M0 {TITLE_BAR - 8}V10A10 10 0 0 1 10 0H{width - 10}A10 10 0 0 1 {width} 10V{TITLE_BAR - 8}Z" '
        'fill="#1b2638"/>',
        *(
            f'<circle cx="{MARGIN + 20 * i}" cy="15" r="6" fill="{colour}"/>'
            for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<g font-family="{FONT}" font-size="{FONT_SIZE}" fill="{INK}" xml:space="preserve">',
        f'<text x="{width / 2:g}" y="20" font-size="13" fill="{DIM}" text-anchor="middle">{escape(title)}</text>',
    ]
    for i, line in enumerate(lines):
        shown = line if len(line) <= columns else line[: columns - 1] + "…"
        y = TITLE_BAR + MARGIN + i * LINE_HEIGHT
        # Leading spaces become an offset: not every viewer keeps them.
        x = MARGIN + (len(shown) - len(shown.lstrip())) * ADVANCE
        parts.append(f'<text x="{x:.1f}" y="{y}"{_style(line)}>{escape(shown.lstrip())}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _style(line: str) -> str:
    colour = next((colour for pattern, colour in COLOURS if pattern.search(line)), INK)
    weight = ' font-weight="bold"' if colour == HEADING else ""
    return ("" if colour == INK else f' fill="{colour}"') + weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the SVG file")
    parser.add_argument("--keep", action="append", default=[], metavar="REGEX", help="keep lines that match")
    parser.add_argument("--pair", action="append", default=[], metavar="REGEX", help="keep such a line and the next")
    parser.add_argument("--most", type=int, default=25, help="lines in the picture, at most")
    parser.add_argument("--columns", type=int, default=100, help="characters in a line")
    parser.add_argument("command", nargs="+", help="the command, after --")
    args = parser.parse_args()
    printed = record(args.command, args.columns)
    chosen = select(printed, args.keep, args.pair, args.most)
    total = sum(bool(line) for line in printed)
    typed = shlex.join([Path(args.command[0]).name, *args.command[1:]])
    part = f" ({len(chosen)} of {total} lines)" if len(chosen) < total else ""
    args.out.write_text(draw([f"$ {typed}", *chosen], typed + part, args.columns), encoding="utf-8")
    sys.stdout.write(f"{args.out}: {len(chosen)} of {total} lines, {args.out.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
