"""Predictions against references: metrics with a declared policy for what is missing, and means with confidence intervals."""

from uxnet.evaluation.evaluate import (
    CaseMetrics,
    Evaluation,
    Score,
    Summary,
    evaluate_files,
    evaluate_pairs,
    is_another_file,
    write_evaluation,
    write_evaluation_csv,
)
from uxnet.evaluation.metrics import ClassMetrics, Empty, Outcome, case_metrics, missing_scores, surface_distances
from uxnet.evaluation.pairs import Failure, Pairs, find_labels_file, find_pairs, labels_from_values
from uxnet.evaluation.statistics import Interval, bootstrap_mean
from uxnet.io import read_labels_file

__all__ = [
    "CaseMetrics",
    "ClassMetrics",
    "Empty",
    "Evaluation",
    "Failure",
    "Interval",
    "Outcome",
    "Pairs",
    "Score",
    "Summary",
    "bootstrap_mean",
    "case_metrics",
    "evaluate_files",
    "evaluate_pairs",
    "find_labels_file",
    "find_pairs",
    "is_another_file",
    "labels_from_values",
    "missing_scores",
    "read_labels_file",
    "surface_distances",
    "write_evaluation",
    "write_evaluation_csv",
]
