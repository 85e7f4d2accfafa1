"""The arguments of a run beside transformers' own: small dataclasses, each of which knows what is wrong with it."""

from ftkit.config.data import DataArguments
from ftkit.config.evaluation import EvaluationArguments
from ftkit.config.job import JobArguments
from ftkit.config.loss import LossArguments
from ftkit.config.method import MethodArguments
from ftkit.config.model import OWN_MODELS, ModelArguments, local_model, weights_file

__all__ = [
    "OWN_MODELS",
    "DataArguments",
    "EvaluationArguments",
    "JobArguments",
    "LossArguments",
    "MethodArguments",
    "ModelArguments",
    "local_model",
    "weights_file",
]
