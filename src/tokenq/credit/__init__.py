"""Credit: what each token of a response is worth to a policy, measured against its reference.

The package itself can be called: `tokenq.credit(pair, prompt, response)` is :func:`credit`.
"""

from tokenq.callable_package import make_callable
from tokenq.credit.aggregation import sum_over_spans, word_spans
from tokenq.credit.api import credit
from tokenq.credit.dataset import CreditRun, credit_dataset
from tokenq.credit.result import Credit
from tokenq.credit.segments import Span
from tokenq.credit.vocabulary import Alternative

__all__ = [
    "Alternative",
    "Credit",
    "CreditRun",
    "Span",
    "credit",
    "credit_dataset",
    "sum_over_spans",
    "word_spans",
]

make_callable(__name__, credit)
