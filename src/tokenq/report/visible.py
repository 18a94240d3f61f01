"""Text made safe to look at: blanks, line ends, control and direction characters become visible."""

import unicodedata

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
# Joiners shape letters and emoji and hide nothing.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """Return `text` on one line: no character in it moves the cursor, hides or reorders others.

    Line ends, tabs and blanks at either end become signs; other control, format and lone surrogate
    characters become their code points, such as ⟨U+202E⟩.
    """
    core = text.strip(" ")
    lead = len(text) - len(text.lstrip(" ")) if core else len(text)
    trail = len(text) - lead - len(core)
    return "␣" * lead + "".join(map(_shown, core)) + "␣" * trail


def tame(text: str) -> str:
    """Return `text` with its blanks and line ends kept and all else as in :func:`visible`."""
    return "".join(c if c in " \n" else _shown(c) for c in text)


def _shown(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS:
        return f"⟨U+{ord(character):04X}⟩"
    return character
