"""AdaLoRA: training decides how many ranks each layer keeps (Zhang et al. 2023, arXiv:2303.10512)."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerState

from ftkit.compat.peft import DeviceRanks
from ftkit.config import LossArguments
from ftkit.errors import Advice, UserError
from ftkit.methods.adapter_hooks import AdapterHooks

logger = logging.getLogger(__name__)
_FILE = "ranks.safetensors"  # beside the weights
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # attributes of the rank allocator


class RankAllocation(TrainerCallback):
    """Prunes the least important ranks after every step that is not skipped.

    One schedule covers all stages that train adapters; `steps_before` of its steps belong to earlier stages. It
    catches up after a stage that ended early or kept earlier weights.
    """

    def __init__(self, steps_before: int):
        self.steps_before = steps_before

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        _set_state(model, _state(model))  # an earlier stage may have left it on the CPU

    def on_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if not _has_gradients(model):
            return
        config, allocator = _parts(model)
        step, cut = self.steps_before + state.global_step + 1, config.total_step - config.tfinal
        if step >= cut and not allocator.done:
            if step > cut:  # PEFT reaches the target in exactly the step `cut`, or never
                allocator.update_ipt(model.base_model.model)
                step = cut
            allocator.done = True
        model.base_model.update_and_allocate(step)


class AdaLora(AdapterHooks):
    """AdaLoRA's pruning schedule, its regularisation, and its importance scores, which are not in the weights."""

    def contradictions(self, loss: LossArguments, sharded: bool) -> list[str]:
        """Averaging and sharding of weights."""
        errors: list[str] = []
        if loss.ema_decay is not None:
            errors.append(
                Advice(
                    f"ema_decay: {loss.ema_decay} brings back ranks that adalora has pruned: leave it out, or use "
                    "method: lora",
                    {"ema_decay": None},
                )
            )
        if sharded:
            errors.append(
                Advice(
                    "method: adalora needs unsharded weights, and FSDP and DeepSpeed shard them: use method: lora, or "
                    "launch with accelerate_configs/multi_gpu.yaml",
                    {"method": "lora"},
                )
            )
        return errors

    def options(self, given: dict[str, Any], steps: int) -> dict[str, Any]:
        """The schedule: pruning starts after a tenth of the steps, and ends when a third of them are left.

        Raises:
            UserError: there are too few steps for a schedule, or no ranks to prune.
        """
        if steps < 2:
            raise UserError(f"method: adalora prunes over several steps, and there is only {steps}: train longer")
        first, target = given.get("init_r", AdaLoraConfig.init_r), given.get("target_r", AdaLoraConfig.target_r)
        if target >= first:
            raise UserError(
                f"adapter_args: target_r: {target} must be less than init_r: {first}, or there are no ranks to prune: "
                "change one of them, or use method: lora",
                fix={"adapter_args": given | {"target_r": first // 2}} if first > 1 else {"method": "lora"},
            )
        return {"total_step": steps, "tinit": steps // 10, "tfinal": steps // 3}

    def prepare(self, model: nn.Module) -> None:
        """Use a rank allocator that stays on the model's device."""
        adapted: Any = model
        tuner, config = adapted.base_model, adapted.active_peft_config
        tuner.rankallocator = DeviceRanks(tuner.model, config, adapted.active_adapter)

    def bookkeeping(self, model: nn.Module) -> set[str]:
        """The counts of ranks."""
        return {name for name, _ in model.named_parameters() if ".ranknum." in name}

    def loss_term(self, model: nn.Module) -> torch.Tensor:
        """The regularisation of eq. 4, which PEFT adds only to losses that the model computes itself.

        The mean of ‖P Pᵀ - I‖ over the singular vectors of all layers, times `orth_reg_weight`. Always in float32: the
        squares in a norm soon overflow float16.
        """
        norms: list[Any] = []
        config, _ = _parts(model)
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            for name, parameter in model.named_parameters():
                if ".lora_A." in name or ".lora_B." in name:
                    vectors = parameter.float() if ".lora_A." in name else parameter.float().T
                    product = vectors @ vectors.T
                    norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
            return config.orth_reg_weight * torch.stack(norms).mean()

    def callbacks(self, steps_before: int) -> list[TrainerCallback]:
        """The schedule."""
        return [RankAllocation(steps_before)]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the importance scores and the masks of ranks, if there are any."""
        (folder / _FILE).unlink(missing_ok=True)
        if state := _state(model):
            save_file(state, folder / _FILE)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Read what `save` wrote; without such a file nothing changes."""
        if (folder / _FILE).is_file():
            _set_state(model, load_file(folder / _FILE))

    def finish(self, model: nn.Module) -> None:
        """Make the model save all ranks, masked ones as zeros; warn if more than the target are left."""
        config, allocator = _parts(model)
        target = allocator.target_bgt
        config.rank_pattern = None
        values = [parameter for name, parameter in model.named_parameters() if ".lora_E." in name]
        left = sum(int(value.count_nonzero()) for value in values)
        if left > target:
            logger.warning(
                "adalora: %d of %d ranks are left, and target_r: %d means %d: validation chose weights from before "
                "the last pruning; load_best_model_at_end: false keeps those of the last step",
                left, sum(map(len, values)), config.target_r, target,
            )  # fmt: skip


def _has_gradients(model: nn.Module) -> bool:
    """Whether adapters train and this update is not skipped."""
    return all(parameter.grad is not None for name, parameter in model.named_parameters() if ".lora_E." in name)


def _parts(model: Any) -> tuple[Any, DeviceRanks]:
    """The configuration of AdaLoRA, and its rank allocator."""
    return model.active_peft_config, model.base_model.rankallocator


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """AdaLoRA's state beside its weights: the weights' importance scores so far, and the masks of ranks."""
    config, allocator = _parts(model)
    pattern = config.rank_pattern or {}
    kept = {f"{kind}/{name}": value for kind in _IMPORTANCE for name, value in getattr(allocator, kind).items()}
    return kept | {f"pattern/{name}": mask for name, mask in pattern.items()}


def _set_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Replace the model's state by one that `_state` returned."""
    config, allocator = _parts(model)
    device = next(model.parameters()).device
    allocator.reset_ipt()
    config.rank_pattern = None
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind == "pattern":
            config.rank_pattern = {**(config.rank_pattern or {}), name: value.to(device)}
        else:
            getattr(allocator, kind)[name] = value.to(device)
    left = sum(int(mask.sum()) for mask in (config.rank_pattern or {}).values())
    allocator.done = 0 < left <= allocator.target_bgt
