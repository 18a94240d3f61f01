"""Edited summaries: trained on original over inconsistent edit, truth: where the edit is."""

import random
from collections import defaultdict

from tokenq.data import summedits as source
from tokenq.data.summedits import EditedSummary
from tokenq.errors import UserError
from tokenq.reproduce.localisation.material import Prompt, Task, TestText, TrainingPair
from tokenq.reproduce.localisation.settings import SummEditsSettings

STEPS = "steps"


def summedits(settings: SummEditsSettings) -> Task:
    """The task with these settings; a document is of one split only. Pairs of one document follow
    each other.

    The variant "steps" has the same pairs, of which training sees the first sentence that differs,
    after those before it.
    """

    def pairs(seed: int, variant: str) -> list[TrainingPair]:
        wrong = [edit for edit in _edits("train", settings) if not edit.consistent]
        draw = random.Random(seed)
        draw.shuffle(wrong)
        if len(wrong) < settings.pairs:
            raise UserError(
                f"{settings.pairs} inconsistent edits: there are {len(wrong)}; accepted up to that "
                "number"
            )
        by_document: dict[str, list[EditedSummary]] = defaultdict(list)
        for edit in wrong[: settings.pairs]:
            by_document[edit.prompt].append(edit)
        return [
            TrainingPair(_prompt(edit), edit.original, edit.edited, step=variant == STEPS)
            for edits in by_document.values()
            for edit in edits
        ]

    def tests() -> list[TestText]:
        edits = _edits(settings.split, settings)
        draw = random.Random(0)
        draw.shuffle(edits)
        wrong = [edit for edit in edits if not edit.consistent and edit.exact]
        consistent = [edit for edit in edits if edit.consistent]
        wrong, consistent = wrong[: settings.tests], consistent[: settings.tests]
        originals = {(edit.prompt, edit.original): edit for edit in (*wrong, *consistent)}
        return [
            *(_text(edit, edit.edited, "inconsistent", edit.spans) for edit in wrong),
            *(_text(edit, edit.edited, "consistent", ()) for edit in consistent),
            *(_text(edit, edit.original, "truthful", ()) for edit in originals.values()),
        ]

    return Task(pairs, tests)


def _edits(split: str, settings: SummEditsSettings) -> list[EditedSummary]:
    return source.load(split, domains=settings.domains, max_length=settings.document_words)


def _text(
    edit: EditedSummary, text: str, kind: str, errors: tuple[tuple[int, int], ...]
) -> TestText:
    return TestText(f"{edit.id}:{kind}", edit.prompt, kind, _prompt(edit), text, errors)


def _prompt(edit: EditedSummary) -> Prompt:
    return [{"role": "user", "content": edit.prompt}]
