"""The configuration of a run: small dataclasses beside transformers' arguments, and the loader that reads them."""

from ftkit.config.data import DataArguments
from ftkit.config.evaluation import EvaluationArguments
from ftkit.config.job import JobArguments
from ftkit.config.loss import LossArguments
from ftkit.config.method import MethodArguments
from ftkit.config.model import ModelArguments, local_model, weights_file

__all__ = [
    "DataArguments",
    "EvaluationArguments",
    "JobArguments",
    "LossArguments",
    "MethodArguments",
    "ModelArguments",
    "local_model",
    "weights_file",
]
