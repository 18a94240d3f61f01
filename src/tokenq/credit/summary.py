"""What the records of a scored data set say together."""

from dataclasses import asdict, dataclass, field
from typing import Any

from tokenq.credit.format_tokens import FormatShare


@dataclass
class Mean:
    """A running mean of `count` numbers."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        """Count one number."""
        self.count += 1
        self.total += value

    @property
    def value(self) -> float | None:
        """The mean; None of no numbers."""
        return self.total / self.count if self.count else None


@dataclass
class Summary:
    """Counts and means over rows.

    rows:      scored rows
    skipped:   rows left out, by reason
    tokens:    response tokens scored, end tokens included
    truncated: responses that lost their end to the length limit
    margins:   of rows whose responses have an order (see `credit_dataset`), beta times nats
    agreeing:  those of them in which every better response has the higher summed reward
    rewards:   summed reward of a response, beta times nats, by the response's name
    form:      how much of the credit lies on format tokens
    """

    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    margins: Mean = field(default_factory=Mean)
    agreeing: int = 0
    rewards: dict[str, Mean] = field(default_factory=dict)
    form: FormatShare = field(default_factory=FormatShare)

    def add(self, record: dict[str, Any]) -> None:
        """Count one line of a scored data set."""
        if "skipped" in record:
            reason = record["skipped"]
            self.skipped[reason] = self.skipped.get(reason, 0) + 1
            return
        self.rows += 1
        self.form.add(record)
        for name, side in record["responses"].items():
            self.tokens += len(side["token_ids"])
            self.truncated += side["tokens_cut"] > 0
            self.rewards.setdefault(name, Mean()).add(side["reward"])
        if "margin" in record:
            self.margins.add(record["margin"])
            self.agreeing += record["margin"] > 0

    @property
    def accuracy(self) -> float | None:
        """Share of ordered rows whose margin is above 0; None where no row has an order."""
        return self.agreeing / self.margins.count if self.margins.count else None

    def to_dict(self) -> dict[str, Any]:
        """JSON types; the names of means are those of the training metrics where they agree."""
        plain = asdict(self)
        del plain["margins"], plain["rewards"], plain["agreeing"], plain["form"]
        means = {f"rewards/{name}": mean.value for name, mean in self.rewards.items()}
        if self.margins.count:
            means["rewards/margins"] = self.margins.value
            means["rewards/accuracies"] = self.accuracy
        return {**plain, **means, "format": self.form.to_dict()}
