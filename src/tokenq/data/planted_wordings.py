"""Other wordings of a one-line summary that say the same: the hard negatives of planted errors."""

import re
from collections.abc import Iterator
from functools import cache

from tokenq.data import planted_words as lists
from tokenq.data.planted_edits import Edit, like, same_article, words_of

# Words that a synonym would break: "disk image" is no picture, "hash function" no routine.
_FIXED = re.compile(
    r"\b(?:disk|docker|container|kernel|system|cloud|boot|machine|vm|iso|filesystem) images?"
    r"|\bhash functions?|\bmail (?:transfer|delivery)|\bdisplay manager|\bdesktop environment"
    r"|\bdirectory (?:server|services?|access)|\bsource code|\bopen source|\bfull[- ]text"
    r"|\bactive directory|\b\w+::\w+|\bbuild system|\bbuild tools?|\bvisual basic|\bvisual studio"
    r"|\bchange ?logs?|\blocate database|\bsplit(?:ting|s)?\b|\bstandard library|\bshared library"
    r"|\bsound (?:server|card|font|system|open)s?|\bprogramming language|\bapplication programming"
    r"|\bget text|\bterminal emulators?|\bquick ?(?:time|look|start|check)\b|\bapplication server"
    r"|\bconfiguration management|\bpackage management|\b[Ff]ull screen|\b[Bb]ig [Ee]ndian"
    r"|\blibrary (?:catalog|management|of)|\bfast fourier|\bmovie database|\bimages? of\b"
    r"|\bmessage digest|\bsimple (?:mail|network|object|directmedia)|\bcall log"
    r"|\btest(?:s|ing)? (?:suite|framework)|\binclude file|\bwhole ?sale|\bpicture in",
    re.IGNORECASE,
)

_HEADS = (
    "library|module|client|server|plugin|framework|toolkit|API|extension|driver|daemon|manager|"
    "generator|compiler|emulator|parser|tool|utility|viewer|editor|player|browser|wrapper|engine|"
    "interface|converter|simulator|decoder|encoder|analyzer|calculator|solver|monitor|proxy|theme"
)
_QUALITIES = (
    "simple|small|fast|lightweight|light|tiny|powerful|flexible|modern|portable|generic|easy|"
    "efficient|extensible|minimal|graphical|interactive|advanced|basic|free|new|quick|secure|"
    "versatile|minimalistic|minimalist|robust|scalable|a|an|the|high-performance|cross-platform|"
    "configurable|customizable|pluggable|modular|open-source|simplistic|elegant|multi-platform"
)
_HEAD_LAST = re.compile(
    rf"(?P<quality>(?:(?:{_QUALITIES}),? (?:and )?)*)"
    rf"(?P<what>[^\s,]+(?: [^\s,]+)?) (?P<head>{_HEADS})",
    re.IGNORECASE,
)
_OF_LANGUAGE = re.compile(
    r"(?P<language>Python|Perl|Ruby|PHP|Java|Lua|Tcl|Haskell|Go|Rust|JavaScript|OCaml|Erlang) "
    r"(?P<head>library|module|package|extension|framework|toolkit|implementation|client|interface|"
    r"bindings|wrapper|API)(?P<rest> (?:for|to|that|which|of|with) .+)"
)
_TOOL_TO = re.compile(
    r"(?P<head>(?:\S+ ){0,5}"
    r"(?:tool|utility|program|library|module|application|script|daemon|plugin))"
    r" to (?P<rest>[a-z].+)"
)
_TOOL_FOR = re.compile(
    r"(?P<head>(?:\S+ ){0,5}"
    r"(?:tools|utilities|programs|library|module|application|script|libraries))"
    r" for (?P<rest>[a-z]+ing .+)"
)
# Verbs at the head of a summary; those that are nouns too only before what cannot follow a noun.
_IMPERATIVE = re.compile(
    r"(?:(?P<verb>convert|create|generate|manage|extract|find|remove|edit|add|manipulate|parse|send|"
    r"compare|encode|decode|compute|calculate|make|install|automatically|write|organize|analyze|"
    r"transform|translate|detect|validate|encrypt|decrypt|compress|import|export|connect) "
    r"(?P<rest>.+)"
    r"|(?P<noun_too>read|display|show|control|play|view|list|check|run|download|monitor|build|"
    r"access|use|scan|print|search|split|merge|fetch|load) "
    r"(?P<object>(?:an?|the|your|all|any|multiple|several) .+))",
    re.IGNORECASE,
)
# "A for B", said the other way round; B is no activity and there is one "for" only.
_FOR_WHAT = re.compile(r"(?P<thing>(?:(?! for )[^,;:])+) for (?P<what>(?:(?! for )[^,;:])+)")
_PHRASE = re.compile(rf"\b(?:{'|'.join(written for written, _ in lists.PHRASES)})\b(?! \w+ing\b)")
_VERBAL = re.compile(
    r"\b(?:is|are|was|has|have|can|will|that|which|to|ready|features|useful|\w+ed|provides|contains|"
    r"offers|allows|supports|implements|includes|makes)$|\b(?:is|are|was|has|can|it)\b",
    re.IGNORECASE,
)
_COORDINATED = re.compile(
    r"(?<![\w,/-] )\b(?P<one>[\w+#-]{3,}) (?P<word>and|or) (?P<two>[\w+#-]{3,})"
)


def consistent_edits(summary: str) -> list[Edit]:
    """One-word changes that leave what ``summary`` says as it is, by place.

    ``kind`` is "alias" (one detail under another name) or "synonym".
    """
    fixed = [match.span() for match in _FIXED.finditer(summary)]
    found = []
    for word in words_of(summary):
        for kind, other in _equals(word.text, word.start == 0):
            if any(start < word.end and word.start < end for start, end in fixed):
                continue
            if same_article(summary, word.start, word.text, other):
                found.append(Edit(kind, word.text, word.start, word.end, word.text, other))
    return found


def paraphrases(summary: str) -> list[str]:
    """Rewordings that change the order or several words, best first; empty if none is known."""
    return list(dict.fromkeys(text for text in _reworded(summary) if text != summary))


def _reworded(summary: str) -> Iterator[str]:
    if match := _OF_LANGUAGE.fullmatch(summary):
        language, head, rest = match.group("language", "head", "rest")
        if head in ("implementation", "interface", "bindings", "API"):
            yield f"{head}{rest}, for {language}"
        elif f" {language}" not in rest:
            yield f"{head} for {language}{rest.replace(' for ', ' made for ', 1)}"
    if match := _HEAD_LAST.fullmatch(summary):
        quality, what, head = match.group("quality", "what", "head")
        if not re.search(r"(?:ed|ing|ic|al|ive|able|ible|[a-z]based)$", what.split()[0]):
            yield f"{quality}{head} for {what}"
    if match := _TOOL_TO.fullmatch(summary):
        yield f"{match['head']} that can {match['rest']}"
    if match := _TOOL_FOR.fullmatch(summary):
        yield f"{match['head']} made for {match['rest']}"
    if match := _IMPERATIVE.fullmatch(summary):
        verb, rest = match["verb"] or match["noun_too"], match["rest"] or match["object"]
        yield f"lets you {verb.lower()} {rest}"
    changed = _swap_coordinated(_say_phrases(summary))
    if changed != summary:
        yield changed
    match = _FOR_WHAT.fullmatch(summary)
    if match and len(summary.split()) <= 10 and not _VERBAL.search(match["thing"]):
        yield f"for {match['what']}: {match['thing']}"
    if len(changed := _several_synonyms(summary)) and changed != summary:
        yield changed


def _several_synonyms(summary: str) -> str:
    """Two words or more replaced by words that say the same; unchanged if there is only one."""
    edits = {edit.start: edit for edit in consistent_edits(summary)}
    if len(edits) < 2:
        return summary
    for _, edit in sorted(edits.items(), reverse=True):
        summary = edit.apply(summary)
    return summary


def _say_phrases(summary: str) -> str:
    otherwise = dict(lists.PHRASES)
    return _PHRASE.sub(lambda match: otherwise[match.group()], summary, count=1)


def _swap_coordinated(summary: str) -> str:
    """ "A and B" as "B and A", where both are single words of one form."""
    for match in _COORDINATED.finditer(summary):
        one, two = match.group("one", "two")
        after = summary[match.end() :]
        alike = _form(one) == _form(two) and _form(one) != "other"
        if alike and not re.match(r"[,/-]| (?:and|or)\b", after) and match.start() > 0:
            return summary[: match.start()] + f"{two} {match['word']} {one}" + after
    return summary


def _form(word: str) -> str:
    if word.endswith("ing"):
        return "ing"
    if word.isupper() or (any(c.isupper() for c in word[1:])):
        return "name"
    if word.endswith("s") and word.islower():
        return "plural"
    return "other"


def _equals(word: str, first: bool) -> Iterator[tuple[str, str]]:
    for other in _table("alias").get(word, ()):
        yield "alias", other
    lowered = word if word.islower() else word.lower() if word.istitle() and first else ""
    for other in _table("synonym").get(lowered, ()):
        yield "synonym", like(word, other)


@cache
def _table(kind: str) -> dict[str, list[str]]:
    groups = lists.ALIASES if kind == "alias" else lists.SYNONYMS
    table: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            table.setdefault(word, []).extend(other for other in group if other != word)
    for word, *others in lists.REPLACEMENTS if kind == "synonym" else ():
        table.setdefault(word, []).extend(others)
    return table
