"""ftkit's own models. Importing this module registers them with transformers' Auto classes."""

from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from .modeling_convnet import ConvNetConfig, ConvNetForImageClassification
from .modeling_mlp import MLPConfig, MLPForImageClassification
from .modeling_rnn import RNNConfig, RNNForImageClassification

_MODELS: dict[str, tuple[Any, Any]] = {
    "mlp": (MLPConfig, MLPForImageClassification),
    "convnet": (ConvNetConfig, ConvNetForImageClassification),
    "rnn": (RNNConfig, RNNForImageClassification),
}
CONFIGS = {name: config for name, (config, _) in _MODELS.items()}

for _config, _model in _MODELS.values():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)
    # From now on, saving a model copies its modeling file beside the weights, so that it loads without ftkit.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")
