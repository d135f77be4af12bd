"""What stands in files of a stranger must not act on a terminal."""

from __future__ import annotations

import re

# C0 but for tab and newline, delete, C1, and what turns the direction of a line, or ends it.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    r"""Return text with its control characters written out, such as `\x1b`."""
    return _ACTING.sub(lambda found: ascii(found[0])[1:-1], text)
