"""Credit: what each token of a response is worth to a policy, measured against its reference.

The package itself can be called: `tokenq.credit(pair, prompt, response)` is :func:`credit`.
"""

from tokenq.callable_package import make_callable
from tokenq.credit.aggregation import sentence_units, sum_over_spans, word_spans, word_units
from tokenq.credit.api import credit
from tokenq.credit.calibration import (
    BlameSource,
    CalibratedSpan,
    SpanCalibration,
    blame_source,
    calibrate_spans,
    calibrated_spans,
)
from tokenq.credit.dataset import CreditRun, credit_dataset
from tokenq.credit.estimators import (
    ESTIMATORS,
    Estimator,
    SurprisalAdjustment,
    average,
    estimator,
)
from tokenq.credit.gauge import Gauge, SoftValues
from tokenq.credit.result import Credit
from tokenq.credit.segments import Span
from tokenq.credit.vocabulary import Alternative, StateFacts

__all__ = [
    "ESTIMATORS",
    "Alternative",
    "BlameSource",
    "CalibratedSpan",
    "Credit",
    "CreditRun",
    "Estimator",
    "Gauge",
    "SoftValues",
    "Span",
    "SpanCalibration",
    "StateFacts",
    "SurprisalAdjustment",
    "average",
    "blame_source",
    "calibrate_spans",
    "calibrated_spans",
    "credit",
    "credit_dataset",
    "estimator",
    "sentence_units",
    "sum_over_spans",
    "word_spans",
    "word_units",
]

make_callable(__name__, credit)
