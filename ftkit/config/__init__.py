"""The configuration of a run: small dataclasses beside transformers' arguments, and the loader that reads them."""

from ftkit.config.arguments.data import DataArguments
from ftkit.config.arguments.evaluation import EvaluationArguments
from ftkit.config.arguments.job import JobArguments
from ftkit.config.arguments.loss import LossArguments
from ftkit.config.arguments.method import MethodArguments
from ftkit.config.arguments.model import ModelArguments, local_model, weights_file

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
