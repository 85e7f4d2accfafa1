"""PEFT's adapters: which layers of a model take them, and merging them back into plain weights."""

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, PeftType
from torch import nn
from transformers import PreTrainedModel

from ftkit.config import MethodArguments, local_model
from ftkit.errors import UserError, listed, nearest
from ftkit.methods.adapter_kinds import adapter_config, adapter_options, first_line, hooks_of
from ftkit.models.anatomy import find_head, is_inside, is_norm
from ftkit.precision import exact_float32

logger = logging.getLogger(__name__)
_MERGE_TOLERANCE = 1e-4  # for logits of magnitude 1
_LACKING = "PEFT's layer has no attribute"
_NORM_METHODS = (PeftType.LN_TUNING,)  # they train the norms themselves, but would take any layer


def add_adapters(args: MethodArguments, model: Any, pixel_values: torch.Tensor, steps: int) -> PeftModel:
    """The model with the adapters of `args.method`; the head trains and is saved with them.

    Unless `adapter_args` names `target_modules`, adapters go to every linear and convolutional layer of the body
    that the method can adapt. This is tried out on a copy of each kind of layer: adapters are added, run forward and
    backward, and merged if `merge_adapters`.

    Args:
        args: `method`, `adapter_args`, `merge_adapters`.
        model: a model with random or trained weights; its modules are replaced.
        pixel_values: float (B, C, H, W), any images, to compute the inputs of the layers.
        steps: the number of optimizer steps that train adapters, over all stages.

    Raises:
        UserError: an option is wrong, or no layer of the model takes these adapters.
    """
    head = [*find_head(model)]
    _check_names(model, head)
    options = adapter_options(args, steps)
    if "target_modules" not in options:
        options["target_modules"] = _adaptable(args, model, head, pixel_values, options)
    options["modules_to_save"] = sorted({*head, *_known(options.get("modules_to_save") or [], model)})
    try:
        adapted = get_peft_model(model, adapter_config(args.method, options))
        if args.merge_adapters:
            _lend_attributes(adapted)
        _logits(adapted, pixel_values)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"adapter_args: {args.method} with target_modules {options['target_modules']} does not fit the model, "
            f"whose modules are {', '.join(_kinds(model))}: {first_line(error)}"
        ) from error
    hooks_of(adapted).prepare(adapted)
    if args.merge_adapters:
        merged(copy.deepcopy(adapted), pixel_values)  # raises before training, not after it
    base = local_model(model.name_or_path or "")
    if base is not None:
        adapted.active_peft_config.base_model_name_or_path = str(base.resolve())
    return adapted


def merged(model: PeftModel, pixel_values: torch.Tensor) -> PreTrainedModel:
    """The plain model with the adapters in its weights.

    Args:
        pixel_values: float (B, C, H, W), images on which the logits are compared before and after.

    Raises:
        UserError: the method cannot be merged, or the logits differ by more than 1e-4 of their size.
    """
    before = _logits(model, pixel_values)
    try:
        plain = model.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        message = f"merge_adapters: PEFT cannot merge these: {first_line(error)}: leave it out"
        raise UserError(message, fix={"merge_adapters": None}) from error
    for place, module in list(plain.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # LN tuning leaves these wrappers in
            plain.set_submodule(place, module.modules_to_save[module.active_adapters[0]])
    if left := [place for place, module in plain.named_modules() if type(module).__module__.startswith("peft.")]:
        message = f"merge_adapters: PEFT leaves modules of its own in the model ({left[0]}, …): leave it out"
        raise UserError(message, fix={"merge_adapters": None})
    difference = (_logits(plain, pixel_values) - before).abs().max().item()
    if not difference <= _MERGE_TOLERANCE * max(1.0, before.abs().max().item()):
        raise UserError(
            f"merge_adapters: merging changes the logits by {difference:.2g}: leave it out, and the adapters are "
            "saved as they are",
            fix={"merge_adapters": None},
        )
    return plain


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The parameters that change while a model's adapters train, by name."""
    bookkeeping = hooks_of(model).bookkeeping(model)
    return {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name in bookkeeping
    }


def _check_names(model: nn.Module, head: list[str]) -> None:
    """Raise a `UserError` if PEFT, which saves every module whose name ends like the head's, would train another."""
    for name, module in model.named_modules():
        inside = any(is_inside(name, place) for place in head)
        if name.endswith(tuple(head)) and not inside and any(True for _ in module.parameters()):
            raise UserError(
                f"model: PEFT cannot tell the head, {', '.join(head)}, from {name}, whose name ends alike, and would "
                "train and save all of it: use a method without adapters"
            )


def _known(names: list[str], model: nn.Module) -> list[str]:
    """The recipe's `modules_to_save`. Each must exist: PEFT would skip a missing one silently."""
    modules = [name for name, _ in model.named_modules() if name]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise UserError(f"adapter_args: modules_to_save: the model has no module {name!r}{nearest(name, modules)}")
    return names


def _adaptable(
    args: MethodArguments, model: PreTrainedModel, head: list[str], pixel_values: torch.Tensor, options: dict[str, Any]
) -> list[str]:
    """The names of the body's layers that take the adapters."""
    norms = adapter_config(args.method, {**options, "target_modules": ["0"]}).peft_type in _NORM_METHODS
    inputs, read = _watched(model, is_norm if norms else _is_linear_or_convolution, pixel_values)
    inputs = {name: given for name, given in inputs.items() if not any(is_inside(name, place) for place in head)}
    found: list[str] = []
    refused: dict[str, str] = {}
    tried: dict[tuple, str | None] = {}
    for name, given in inputs.items():
        layer = model.get_submodule(name)
        kind = (repr(layer), given.shape, *sorted(read[name]))
        if kind not in tried:
            tried[kind] = _refusal(args, layer, given, options, set() if args.merge_adapters else read[name])
        if (reason := tried[kind]) is None:
            found.append(name)
        else:
            refused[name] = reason
    reasons = "; ".join(dict.fromkeys(refused.values()))
    if not inputs:
        raise UserError(
            f"method: {args.method}: the model has no {'norm' if norms else 'linear or convolutional'} layers before "
            "its head to adapt: use method: full, or another model",
            fix={"method": "full", "adapter_args": None, "merge_adapters": None},
        )
    lends = any(reason.startswith(_LACKING) for reason in refused.values())
    if not found and not lends:
        raise UserError(
            f"method: {args.method} fits none of the {len(inputs)} {'norm' if norms else 'linear and convolutional'} "
            f"layers before the head{': ' + reasons[:400] if reasons else ''}: set adapter_args, or use method: full",
            fix={"method": "full", "adapter_args": None, "merge_adapters": None},
        )
    if not found:
        raise UserError(
            f"method: {args.method} fits none of the {len(inputs)} layers before the head as they are: "
            f"{reasons[:400]}: set merge_adapters: true, which saves plain weights",
            fix={"merge_adapters": True},
        )
    if refused:
        logger.info("adapters: %s leaves out %d layers: %s (%s)", args.method, len(refused),
                    listed(refused, 8), reasons[:200])  # fmt: skip
    return found


def _is_linear_or_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def _kinds(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear and convolutional layers, each once."""
    names = [name for name, layer in model.named_modules() if _is_linear_or_convolution(layer)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))[:20]


class _Watched(nn.Module):
    """Stands in for a layer, and records its input and the attributes that the network reads."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.read = layer, set[str]()
        self.given: torch.Tensor | None = None

    def forward(self, given: torch.Tensor, *more: Any) -> torch.Tensor:
        if self.given is None:
            self.given = given
        return self.layer(given, *more)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.read.add(name)
            return getattr(self.layer, name)


def _watched(
    model: PreTrainedModel, wanted: Callable[[nn.Module], bool], pixel_values: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, set[str]]]:
    """The input of each wanted layer for these images, and the layer's attributes that the network reads.

    Layers that do not run are left out; both are in the order of the model.
    """
    watched = {name: _Watched(layer) for name, layer in model.named_modules() if wanted(layer)}
    try:
        for name, stand_in in watched.items():
            model.set_submodule(name, stand_in)
        _logits(model, pixel_values)
    finally:
        for name, stand_in in watched.items():
            model.set_submodule(name, stand_in.layer)
    inputs = {name: stand_in.given for name, stand_in in watched.items() if stand_in.given is not None}
    return inputs, {name: watched[name].read for name in inputs}


def _lend_attributes(model: PeftModel) -> None:
    """Give PEFT's layers the attributes of the layers that they wrap, such as `stride`, which some networks read."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            own = vars(layer.get_base_layer()).items()
            missing = {key: value for key, value in own if not key.startswith("_") and not hasattr(layer, key)}
            vars(layer).update(missing)


@exact_float32()
def _refusal(
    args: MethodArguments, layer: nn.Module, given: torch.Tensor, options: dict[str, Any], read: set[str]
) -> str | None:
    """Why a layer cannot be adapted, or None; the layer itself is unchanged.

    Args:
        read: the layer's attributes that the network reads.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # the model is still on the CPU
        warnings.simplefilter("ignore")  # PEFT warns again when the layer itself is adapted
        try:
            tried = get_peft_model(
                nn.Sequential(copy.deepcopy(layer)), adapter_config(args.method, {**options, "target_modules": ["0"]})
            )
            adapted = tried.get_base_model().get_submodule("0")
            if lacking := sorted(name for name in read if not hasattr(adapted, name)):
                return f"{_LACKING} {', '.join(lacking)}, which the network reads"
            trained = [parameter for parameter in tried.parameters() if parameter.requires_grad]
            with torch.no_grad():
                own = copy.deepcopy(layer)(given)
                # Most adapters start without an effect, some with noise; OFT on larger kernels triples the output.
                if (tried(given) - own).abs().max() > own.abs().max():
                    return "untrained, it changes the layer's output by more than 100%"
                for parameter in trained:
                    parameter.add_(0.05 * torch.randn_like(parameter))
            tried(given).square().mean().backward()
            if not trained or any(parameter.grad is None for parameter in trained):
                return "not every parameter gets a gradient"
            if args.merge_adapters:
                with torch.no_grad():
                    before = tried.eval()(given)
                    after = tried.merge_and_unload()(given)
                difference = (after - before).abs().max() / before.abs().max().clamp(min=1.0)
                return None if difference <= _MERGE_TOLERANCE else f"merging changes its output by {difference:.2g}"
        except Exception as error:  # PEFT's tuners raise anything: ValueError, TypeError, KeyError, …
            return first_line(error)
    return None


@exact_float32()
@torch.no_grad()
def _logits(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    training = model.training
    device = next(model.parameters()).device
    logits = model.eval()(pixel_values=pixel_values.to(device)).logits
    model.train(training)
    return logits
