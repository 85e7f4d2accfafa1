"""ftkit's own models. Importing this package makes transformers' Auto classes know them."""

from transformers import AutoConfig, AutoModelForImageClassification

from .channels import match_channels
from .modeling_convnet import ConvNetConfig, ConvNetForImageClassification
from .modeling_mlp import MLPConfig, MLPForImageClassification
from .modeling_rnn import RNNConfig, RNNForImageClassification

__all__ = [
    "ConvNetConfig",
    "ConvNetForImageClassification",
    "MLPConfig",
    "MLPForImageClassification",
    "RNNConfig",
    "RNNForImageClassification",
    "match_channels",
]

for _config, _model in (
    (MLPConfig, MLPForImageClassification),
    (ConvNetConfig, ConvNetForImageClassification),
    (RNNConfig, RNNForImageClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)
    # Saving a model now copies its modelling file beside the weights, so that it loads where ftkit is not installed.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")
