"""The arguments of a run beside transformers' own: small dataclasses, each of which knows what is wrong with it."""

from ftkit.arguments.data import DataArguments
from ftkit.arguments.loss import LossArguments
from ftkit.arguments.method import MethodArguments
from ftkit.arguments.model import OWN_MODELS, ModelArguments, local_model, weights_file
from ftkit.arguments.run import EvaluationArguments, RunArguments

__all__ = [
    "OWN_MODELS",
    "DataArguments",
    "EvaluationArguments",
    "LossArguments",
    "MethodArguments",
    "ModelArguments",
    "RunArguments",
    "local_model",
    "weights_file",
]
