"""Several judges over one set of comparisons, each loaded in its turn, every verdict kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from tokenq.errors import UserError
from tokenq.judges.comparisons import Comparison, Verdict, shown, verdict_of
from tokenq.judges.journal import VerdictJournal
from tokenq.judges.judging import judge_comparisons
from tokenq.judges.responses import Responses
from tokenq.judges.specs import NamedJudge, Resources
from tokenq.judges.summary import JudgeReport, summarise
from tokenq.judges.wins import Agreement, agreement


@dataclass(frozen=True)
class Judged:
    """The verdicts of one judge, what decided them, and what they say."""

    verdicts: list[Verdict]
    identity: dict[str, Any]
    report: JudgeReport


def right_answers(
    named: NamedJudge, comparisons: Sequence[Comparison], *sides: Responses
) -> dict[str, str]:
    """The right answers that a judge needs, by prompt key; of sides that disagree the first's.

    Raises UserError for a prompt without one.
    """
    if named.column is None:
        return {}
    found: dict[str, str] = {}
    for side in reversed(sides):
        found.update(side.column(named.column))
    without = [each for each in comparisons if each.key not in found]
    if without:
        raise UserError(
            f"judge '{named.name}': {len(without)} comparisons have no field '{named.column}', "
            f"the first that of the prompt {shown(without[0].prompt)}; accepted: the right answer, "
            "text or a number, with every prompt"
        )
    return found


def run_judges(
    judges: Sequence[tuple[NamedJudge, Resources]],
    comparisons: Sequence[Comparison],
    journal: VerdictJournal,
    *,
    seed: int = 0,
    both_orders: bool = False,
    on_judge: Callable[[str, int], None] = lambda name, known: None,
    on_verdict: Callable[[], None] = lambda: None,
) -> dict[str, Judged]:
    """Ask each judge for the verdicts that the (entered) journal lacks, and read them all.

    on_judge:   called as a judge begins, with its name and how many verdicts were there already
    on_verdict: called after each further verdict

    Raises UserError where a judge fails; what it said until then is in the journal.
    """

    def judged(named: NamedJudge, resources: Resources) -> Judged:
        opened = named.open(resources)
        known = journal.known(named.name, opened.identity)
        on_judge(named.name, len(known))
        verdicts = {number: verdict_of(record) for number, record in known.items()}
        missing = [number for number in range(len(comparisons)) if number not in verdicts]

        def keep(place: int, verdict: Verdict) -> None:
            number = missing[place]
            verdicts[number] = verdict
            texts = asdict(comparisons[number])
            journal.append(named.name, number, {**texts, **verdict.record()})
            on_verdict()

        judge_comparisons(
            opened.judge,
            [comparisons[number] for number in missing],
            tie=named.tie,
            seed=seed,
            both_orders=both_orders,
            on_verdict=keep,
        )
        ordered = [verdicts[number] for number in range(len(comparisons))]
        return Judged(ordered, opened.identity, summarise(comparisons, ordered, seed=seed))

    found = {named.name: judged(named, resources) for named, resources in judges}
    journal.finish()
    return found


def agreements(judged: Mapping[str, Judged]) -> list[tuple[str, str, Agreement | None]]:
    """How far each two judges agree."""
    preferences = {
        name: [verdict.preference for verdict in each.verdicts] for name, each in judged.items()
    }
    return [
        (one, other, agreement(preferences[one], preferences[other]))
        for one, other in combinations(preferences, 2)
    ]
