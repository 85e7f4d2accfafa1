"""Which part of a model is its head."""

from torch import nn
from transformers import PreTrainedModel, TimmWrapperForImageClassification

from ftkit.errors import UserError


def find_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The name and the module of the linear layer that gives the logits.

    timm models say which it is. Elsewhere it is `classifier` or a layer inside it, as in transformers' vision models
    and ftkit's own.

    Raises:
        UserError: there is no such layer; the message names the linear layers with as many outputs as classes.
    """
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    if isinstance(model, TimmWrapperForImageClassification):
        found = [name for name, module in linear.items() if module is model.timm_model.get_classifier()]
    else:
        found = [name for name in linear if "classifier" in name.split(".")]
    if len(found) != 1:
        raise UserError(
            f"model: the head of {type(model).__name__} cannot be found: {len(found)} layers could be it; linear "
            f"layers with {model.config.num_labels} outputs: {', '.join(linear) or 'none'}"
        )
    return found[0], linear[found[0]]
