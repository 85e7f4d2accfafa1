"""AdaLoRA: which layers get how many ranks is decided while it trains (Zhang et al. 2023, arXiv:2303.10512)."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import RankAllocator
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
RANKS = "ranks.safetensors"  # beside weights
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of the rank allocator


class DeviceRanks(RankAllocator):
    """PEFT's allocator with masks that stay on the device: PEFT's own makes lists of them, and waits at every step.

    The masks of a model, in `rank_pattern` of its config, are bool (r,), by the names of `lora_E`.

    Attributes:
        given_away: whether the ranks above the target have been given away.
    """

    given_away = False

    def update_ipt(self, model: nn.Module) -> None:
        """Learn from the gradients; what is not finite in them, in an update that is left out, counts as nothing."""
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        super().update_ipt(model)

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, torch.Tensor]:
        """Keep the `budget` most important ranks; the masks of all."""
        scores = {}
        for name in self.name_set:
            right, left = self._element_score(name % "lora_A"), self._element_score(name % "lora_B")
            both = torch.cat([right.mean(1, keepdim=True), left.mean(0).view(-1, 1)], dim=1)
            scores[name % "lora_E"] = self._combine_ipt(self._element_score(name % "lora_E"), both)
        ranked = torch.cat(list(scores.values())).sort().values
        masked = self.init_bgt - budget
        masks = {name: ~(own <= ranked[masked - 1]) if masked else own == own for name, own in scores.items()}
        self.mask_using_rank_pattern(model, masks)
        return masks

    @torch.no_grad()
    def mask_using_rank_pattern(self, model: nn.Module, rank_pattern: dict[str, torch.Tensor]) -> None:
        """Set the ranks to zero that the masks do not keep."""
        for name, mask in rank_pattern.items():
            model.get_parameter(name).masked_fill_(~mask.unsqueeze(-1), 0.0)


class RankAllocation(TrainerCallback):
    """Lets AdaLoRA give its ranks to the layers that need them, after every step that is not left out.

    Its plan goes over all stages in which adapters train: `steps_before` of it belong to earlier ones. Where a stage
    ended early, or went on with weights from before, the plan is carried out as soon as it can be.
    """

    def __init__(self, steps_before: int):
        self.steps_before = steps_before

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if _is_adalora(model):  # what an earlier stage left may lie on the CPU
            restore_ranks(model, rank_state(model))

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not _is_adalora(model) or not _has_gradients(model):
            return
        config, allocator = model.active_peft_config, model.base_model.rankallocator
        step, cut = self.steps_before + state.global_step + 1, config.total_step - config.tfinal
        if step >= cut and not allocator.given_away:
            if step > cut:  # PEFT gives the last ones away in the step of the cut alone
                allocator.update_ipt(model.base_model.model)
                step = cut
            allocator.given_away = True
        model.base_model.update_and_allocate(step)


def _has_gradients(model: nn.Module) -> bool:
    """Whether adapters train, and this update is not left out."""
    return all(parameter.grad is not None for name, parameter in model.named_parameters() if ".lora_E." in name)


def allocate_on_device(model: PeftModel) -> None:
    """Let a model with AdaLoRA, which has not trained yet, decide on its device."""
    if _is_adalora(model):
        tuner = model.base_model
        tuner.rankallocator = DeviceRanks(tuner.model, model.active_peft_config, model.active_adapter)


def rank_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What AdaLoRA knows beside its weights: how much each of them mattered so far, and which ranks it masks."""
    if not _is_adalora(model):
        return {}
    allocator, pattern = model.base_model.rankallocator, model.active_peft_config.rank_pattern or {}
    kept = {f"{kind}/{name}": value for kind in _IMPORTANCE for name, value in getattr(allocator, kind).items()}
    return kept | {f"pattern/{name}": mask for name, mask in pattern.items()}


def restore_ranks(model: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Take up again what `rank_state` gave; what was known meanwhile is forgotten."""
    allocator, config = model.base_model.rankallocator, model.active_peft_config
    allocator.reset_ipt()
    config.rank_pattern = None
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind == "pattern":
            config.rank_pattern = {**(config.rank_pattern or {}), name: value.to(model.device)}
        else:
            getattr(allocator, kind)[name] = value.to(model.device)
    left = sum(int(mask.sum()) for mask in (config.rank_pattern or {}).values())
    allocator.given_away = 0 < left <= allocator.target_bgt


def save_ranks(model: nn.Module, folder: Path) -> None:
    """Write `rank_state` beside the weights, where there is one."""
    if state := rank_state(model):
        save_file(state, folder / RANKS)


def restore_ranks_of(model: nn.Module, folder: Path) -> None:
    """Read again what `save_ranks` wrote."""
    if (folder / RANKS).is_file():
        restore_ranks(model, load_file(folder / RANKS))


def is_bookkeeping(name: str) -> bool:
    """Whether a parameter has no gradient and changes even so: AdaLoRA's ranks."""
    return ".ranknum." in name


def finish_adapters(model: nn.Module) -> None:
    """Let all ranks of AdaLoRA be saved, masked ones as zeros, and say so if too few were given away."""
    if not _is_adalora(model):
        return
    config, target = model.active_peft_config, model.base_model.rankallocator.target_bgt
    config.rank_pattern = None
    values = [parameter for name, parameter in model.named_parameters() if ".lora_E." in name]
    left = sum(int(value.count_nonzero()) for value in values)
    if left > target:
        logger.warning(
            "adalora: %d of %d ranks are left, and target_r: %d means %d: the weights that validation chose are from "
            "before the last ones were given away; load_best_model_at_end: false takes those of the last step",
            left, sum(map(len, values)), config.target_r, target,
        )  # fmt: skip


def orthogonality(model: nn.Module) -> torch.Tensor | float:
    """AdaLoRA's regularisation, which PEFT adds only to a loss that the model computes itself; 0 for all others.

    The mean of ‖P Pᵀ - I‖ over the singular vectors of all layers, times `orth_reg_weight` (eq. 4). In float32 under
    mixed precision too: the squares of a norm are soon more than float16 holds.
    """
    if not _is_adalora(model):
        return 0.0
    norms: list[Any] = []
    with torch.autocast(model.device.type, enabled=False):
        for name, parameter in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                vectors = parameter.float() if ".lora_A." in name else parameter.float().T
                product = vectors @ vectors.T
                norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        return model.active_peft_config.orth_reg_weight * torch.stack(norms).mean()


def _is_adalora(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and model.active_peft_config.peft_type == PeftType.ADALORA
