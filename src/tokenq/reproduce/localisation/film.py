"""Film review sentences: trained on which of two people liked better, truth: valence of words."""

from tokenq.credit.aggregation import word_spans
from tokenq.data import film_reviews, lexicon
from tokenq.demo.material import answers
from tokenq.errors import UserError
from tokenq.reproduce.localisation.material import RatedWord, Task, TestText, TrainingPair
from tokenq.reproduce.localisation.settings import FilmSettings

PROMPT = [{"role": "user", "content": film_reviews.INSTRUCTIONS[0]}]


def film(settings: FilmSettings) -> Task:
    """The task with these settings. Its texts have no wrong characters, but words with a valence.

    Raises UserError where there are fewer pairs or texts than asked for.
    """

    def pairs(seed: int, variant: str) -> list[TrainingPair]:
        options = film_reviews.PairOptions(gap=settings.gap, seed=seed)
        texts = [answers(row) for row in film_reviews.load("train", options)]
        found = [
            TrainingPair(PROMPT, *sides)
            for sides in texts
            if max(len(text.split()) for text in sides) <= settings.max_words
        ]
        if len(found) < settings.pairs:
            raise UserError(
                f"{settings.pairs} film pairs of at most {settings.max_words} words: there are "
                f"{len(found)}; accepted up to that number"
            )
        return found[: settings.pairs]

    def tests() -> list[TestText]:
        valence = {word: entry.mean for word, entry in lexicon.load().items()}
        texts = []
        for snippet in film_reviews.snippets().kept:
            if snippet.split != settings.split or snippet.words > settings.test_words:
                continue
            words = tuple(
                RatedWord(start, end, valence[word])
                for start, end in word_spans(snippet.text)
                if (word := snippet.text[start:end].lower()) in valence
            )
            if words:
                name = str(snippet.number)
                texts.append(TestText(name, name, "review", PROMPT, snippet.text, None, words))
        return texts[: settings.tests]

    return Task(pairs, tests)
