"""Changes of a text's surface that no reader minds: what a reward should not depend on."""

import re

from tokenq.data.planted_wordings import consistent_edits, paraphrases

_QUOTED = re.compile(r"\"([^\"]*)\"")


def perturb(text: str) -> dict[str, str]:
    """Variants of a one-line answer that say the same, by name; only those that differ from it.

    full_stop:      a full stop at the end, or taken away from there
    first_letter:   the first letter in the other case (not in names such as "GNOME")
    newline:        a newline at the end
    leading_blank:  a blank before the text
    double_blank:   two blanks between the first two words
    quoted:         the whole text in quotation marks, or its marks taken away
    curly_quotes:   typographic quotation marks and apostrophes for the typewriter's
    bold:           the whole text in Markdown's marks for bold
    synonym:        the first word that has one, replaced by a word that means the same
    paraphrase:     said otherwise; see :mod:`tokenq.data.planted_wordings`

    The last two keep their meaning in summaries of software, for which their lists were written.
    """
    if not text.strip():
        return {}
    synonyms = [edit for edit in consistent_edits(text) if edit.kind == "synonym"]
    variants = {
        "full_stop": text.removesuffix(".") if text.endswith(".") else f"{text}.",
        "first_letter": _other_case(text),
        "newline": f"{text}\n",
        "leading_blank": f" {text}",
        "double_blank": text.replace(" ", "  ", 1),
        "quoted": match[1] if (match := _QUOTED.fullmatch(text)) else f'"{text}"',
        "curly_quotes": _QUOTED.sub("\u201c\\1\u201d", text).replace("'", "\u2019"),
        "bold": f"**{text}**",
        "synonym": synonyms[0].apply(text) if synonyms else text,
        "paraphrase": next(iter(paraphrases(text)), text),
    }
    return {name: variant for name, variant in variants.items() if variant != text}


def _other_case(text: str) -> str:
    """The first letter in the other case, where the first word is plain."""
    first = text.split(maxsplit=1)[0]
    if not (first.isalpha() and (first.islower() or first.istitle())):
        return text
    return text[:1].swapcase() + text[1:]
