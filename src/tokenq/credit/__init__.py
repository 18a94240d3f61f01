"""Credit: what each token of a response is worth to a policy, measured against its reference.

The package itself can be called: `tokenq.credit(pair, prompt, response)` is :func:`credit`.
"""

from tokenq.callable_package import make_callable
from tokenq.credit.aggregation import sentence_units, sum_over_spans, word_spans, word_units
from tokenq.credit.alignment import AlignedSegment, aligned_segments
from tokenq.credit.api import credit
from tokenq.credit.calibration import (
    BlameSource,
    CalibratedSpan,
    SpanCalibration,
    blame_source,
    calibrate_spans,
    calibrated_spans,
)
from tokenq.credit.cleaning import LabelNoise, clean_dataset, fit_label_noise
from tokenq.credit.dataset import CreditRun, credit_dataset
from tokenq.credit.estimators import (
    ESTIMATORS,
    Estimator,
    SurprisalAdjustment,
    average,
    estimator,
)
from tokenq.credit.format_tokens import FormatShare
from tokenq.credit.gauge import Gauge, SoftValues
from tokenq.credit.pairs import PairCredit, credit_pair
from tokenq.credit.processes import Processes, join_processes
from tokenq.credit.ranking import RankedResponse, rank, rank_dataset
from tokenq.credit.result import Credit
from tokenq.credit.segments import Span
from tokenq.credit.vocabulary import Alternative, StateFacts

__all__ = [
    "ESTIMATORS",
    "AlignedSegment",
    "Alternative",
    "BlameSource",
    "CalibratedSpan",
    "Credit",
    "CreditRun",
    "Estimator",
    "FormatShare",
    "Gauge",
    "LabelNoise",
    "PairCredit",
    "Processes",
    "RankedResponse",
    "SoftValues",
    "Span",
    "SpanCalibration",
    "StateFacts",
    "SurprisalAdjustment",
    "aligned_segments",
    "average",
    "blame_source",
    "calibrate_spans",
    "calibrated_spans",
    "clean_dataset",
    "credit",
    "credit_dataset",
    "credit_pair",
    "estimator",
    "fit_label_noise",
    "join_processes",
    "rank",
    "rank_dataset",
    "sentence_units",
    "sum_over_spans",
    "word_spans",
    "word_units",
]

make_callable(__name__, credit)
