"""Foreign text as a terminal may show it: every character that controls the terminal is made visible.

Names of files, licences, repositories, messages of servers and templates come from strangers. Printed as they are,
they could clear the screen, change its title, hide a line, or turn the order of letters around.
"""

from __future__ import annotations

import json
import re

# Control characters (ESC, newline, DEL, 0x80 to 0x9f), line separators, marks of the writing direction, and halves of
# surrogate pairs, which no terminal can show: Python makes them of bytes in file names that are not UTF-8.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_HALF = 4000  # characters of a line, at its beginning and at its end


def visible(text: str) -> str:
    """Return one line of text with each control character as Python writes it in a source: \\x1b, \\n, \\u202e.

    The middle of a line of more than 8000 characters is left out: a name can have megabytes.
    """
    if len(text) > 2 * _HALF:
        text = f"{text[:_HALF]} … {text[-_HALF:]}"
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def visible_json(text: str) -> str:
    """Return a JSON text that means the same, with each control character inside its strings as \\u001b."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text)
