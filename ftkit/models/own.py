"""ftkit's own models. Importing this module makes transformers' Auto classes know them."""

from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from .modeling_convnet import ConvNetConfig, ConvNetForImageClassification
from .modeling_mlp import MLPConfig, MLPForImageClassification
from .modeling_rnn import RNNConfig, RNNForImageClassification

CONFIGS: dict[str, Any] = {"mlp": MLPConfig, "convnet": ConvNetConfig, "rnn": RNNConfig}

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
