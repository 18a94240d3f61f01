"""One-line summaries of software packages: material, an independent judge, and what can be checked.

Of a training pair people wrote the chosen summary; the rejected one is a sample of the reference
for the same package. (A planted wrong word would be a cleaner error, but hardly any answer that a
model writes differs in one word from the truth; another package's synopsis is told apart without
reading.) That a maintainer's words are better than a sample's is an assumption, not a rating.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from transformers import PreTrainedTokenizerBase

from tokenq.data import planted
from tokenq.data.debian import Description, read
from tokenq.errors import UserError
from tokenq.reproduce.beam_decoding.material import Example, Start
from tokenq.reproduce.beam_decoding.settings import DebianSettings
from tokenq.reproduce.localisation.material import TrainingPair

_SECTIONS = frozenset({"debug", "metapackages", "tasks", "oldlibs", "localization", "doc"})
_PACKAGING = re.compile(
    r"transitional|dummy|meta-?package|documentation|development|debug|common files|data files|"
    r"runtime|\bdocs?\b|\bheaders?\b|shared librar|static librar|examples|virtual package|"
    r"source code|profiling|test data|template|[()]",
    re.IGNORECASE,
)
_FEWEST_WORDS, _SHORTEST = 3, 12
_MOST_WORDS = 10
_SHARES = (("policy", 5), ("judge", 7), ("test", 10))
"""Of ten source packages: five train policies, two the judge, three are summarised."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9+#'._/-]*")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be by for from in into is it its not of on or that the this to "
        "using via which with your",
    )
)


@dataclass(frozen=True)
class Packages:
    """Descriptions of each use, in random but fixed order; no source package is in two.

    tuning, pool: the reference and all other policies; judge, held_out: the judge; tests: prompts
    """

    tuning: list[Description]
    pool: list[Description]
    judge: list[Description]
    held_out: list[Description]
    tests: list[Description]


def packages(settings: DebianSettings, tokenizer: PreTrainedTokenizerBase) -> Packages:
    """Packages whose description is short enough. Raises UserError where there are fewer."""
    wanted = {
        "policy": settings.sft + settings.pool,
        "judge": settings.judge + settings.held_out,
        "test": settings.prompts,
    }
    found: dict[str, list[Description]] = {name: [] for name in wanted}
    seen: set[str] = set()
    for each in sorted(read().descriptions, key=lambda each: _digest(each.package)):
        bucket = _digest(each.source)[0] % 10
        use = next(name for name, end in _SHARES if bucket < end)
        if (
            len(found[use]) < wanted[use]
            and each.source not in seen
            and _is_fit(each)
            and len(tokenizer(each.text)["input_ids"]) <= settings.prompt_tokens
        ):
            seen.add(each.source)
            found[use].append(each)
    for use, count in wanted.items():
        if len(found[use]) < count:
            raise UserError(
                f"{count} packages of the part {use!r}: there are {len(found[use])}; accepted up "
                "to that number"
            )
    policy, judge = found["policy"], found["judge"]
    return Packages(
        tuning=policy[: settings.sft],
        pool=policy[settings.sft :],
        judge=judge[: settings.judge],
        held_out=judge[settings.judge :],
        tests=found["test"],
    )


def prompt(description: Description) -> list[dict[str, str]]:
    """The question about a package."""
    return [{"role": "user", "content": f"{planted.INSTRUCTION}\n\n{description.text}"}]


def examples(descriptions: Sequence[Description]) -> list[Example]:
    """What maintainers answered."""
    return [Example(prompt(each), each.synopsis) for each in descriptions]


def starts(descriptions: Sequence[Description]) -> list[Start]:
    """What is decoded from."""
    return [Start(each.package, prompt(each), "", each.synopsis) for each in descriptions]


def pairs(descriptions: Sequence[Description], samples: Sequence[str]) -> list[TrainingPair]:
    """The maintainer's synopsis over a sample, where the two differ."""
    return [
        TrainingPair(prompt(each), each.synopsis, sample)
        for each, sample in zip(descriptions, samples, strict=True)
        if sample.strip() and sample != each.synopsis
    ]


SAMPLE, OTHER, SPOILED = "sample of the reference", "another package's", "one word of another's"


def judged_pairs(
    descriptions: Sequence[Description], samples: Sequence[str]
) -> dict[str, list[TrainingPair]]:
    """Pairs whose better side is the maintainer's, by what the other side is."""
    following = [*descriptions[1:], descriptions[0]]
    found: dict[str, list[TrainingPair]] = {
        SAMPLE: pairs(descriptions, samples),
        OTHER: [
            TrainingPair(prompt(own), own.synopsis, other.synopsis)
            for own, other in zip(descriptions, following, strict=True)
        ],
        SPOILED: [],
    }
    for own, other in zip(descriptions, following, strict=True):
        spoiled = _spoiled(own.synopsis, other.synopsis)
        if spoiled is not None:
            found[SPOILED].append(TrainingPair(prompt(own), own.synopsis, spoiled))
    return found


def training_pairs(
    descriptions: Sequence[Description], samples: Sequence[str]
) -> list[TrainingPair]:
    """One pair a package for the judge: half are samples, the others of the other two kinds."""
    by_kind = judged_pairs(descriptions, samples)
    named = {kind: {str(p.prompt): p for p in each} for kind, each in by_kind.items()}
    chosen = []
    for each, kind in zip(descriptions, cycle((SAMPLE, OTHER, SAMPLE, SPOILED)), strict=False):
        pair = named[kind].get(str(prompt(each))) or named[OTHER][str(prompt(each))]
        chosen.append(pair)
    return chosen


@dataclass(frozen=True)
class Checks:
    """What can be counted of a summary beside its description and the maintainer's synopsis.

    unsupported: share of its content words that the description does not hold
    foreign:     1 where it has a number or a name (a capital inside, or after the first word) that
                 the description does not hold
    copied:      share of its runs of three words that stand so in the description; None with fewer
                 than three words
    overlap:     F1 of its content words and those of the maintainer's synopsis
    """

    unsupported: float
    foreign: float
    copied: float | None
    overlap: float


def checks(text: str, description: str, synopsis: str) -> Checks:
    """Count; words are compared without case and plural s."""
    own, source = _words(text), _words(description)
    content = [_plain(word) for word in own if word.lower() not in _FUNCTION_WORDS]
    known = {_plain(word) for word in source}
    parts = {piece for word in source for piece in re.split(r"[-/._]", _plain(word))}
    lacking = [word for word in content if word not in known and word not in parts]
    names = [
        word
        for place, word in enumerate(own)
        if re.search(r"\d", word) or re.search(r"[A-Z]", word[1:] if place == 0 else word)
    ]
    runs = [tuple(map(_plain, own[at : at + 3])) for at in range(len(own) - 2)]
    there = {tuple(map(_plain, source[at : at + 3])) for at in range(len(source) - 2)}
    human = {_plain(word) for word in _words(synopsis) if word.lower() not in _FUNCTION_WORDS}
    both = len(human & set(content))
    return Checks(
        unsupported=len(lacking) / len(content) if content else 0.0,
        foreign=float(any(_plain(n) not in known and _plain(n) not in parts for n in names)),
        copied=sum(run in there for run in runs) / len(runs) if runs else None,
        overlap=2 * both / (len(human) + len(set(content))) if human or content else 0.0,
    )


def _spoiled(synopsis: str, other: str) -> str | None:
    """The synopsis with its longest word replaced by the longest one of another."""
    own = sorted(_words(synopsis), key=len)[-1:]
    new = [w for w in sorted(_words(other), key=len) if w.lower() not in synopsis.lower()][-1:]
    if not own or not new:
        return None
    return synopsis.replace(own[0], new[0], 1)


def _is_fit(each: Description) -> bool:
    count = len(each.synopsis.split())
    return (
        each.section not in _SECTIONS
        and _FEWEST_WORDS <= count <= _MOST_WORDS
        and not _PACKAGING.search(each.synopsis)
        and len(each.text.split()) >= _SHORTEST
    )


def _words(text: str) -> list[str]:
    return [word.rstrip(".'-_/") for word in _WORD.findall(text)]


def _plain(word: str) -> str:
    low = word.lower()
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"beam:{text}".encode()).digest()
