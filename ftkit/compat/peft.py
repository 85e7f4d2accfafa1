"""Private and undocumented names of PEFT: AdaLoRA's rank allocator."""

import torch
from peft.tuners.adalora import RankAllocator
from torch import nn


class DeviceRanks(RankAllocator):
    """PEFT's allocator with masks that stay on the device; PEFT's own lists make every step wait for it.

    PEFT has no public way to replace the allocator, or to read the scores that it ranks by. `rank_pattern` of a
    model's config has the masks, bool (r,), by the names of `lora_E`.

    Attributes:
        done: whether pruning has reached the target.
    """

    done = False

    def update_ipt(self, model: nn.Module) -> None:
        """Update the scores from the gradients; values that are not finite, in a skipped update, count as zero."""
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        super().update_ipt(model)

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, torch.Tensor]:
        """Keep the `budget` most important ranks; returns the masks of all layers."""
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
        """Set the ranks outside the masks to zero."""
        for name, mask in rank_pattern.items():
            model.get_parameter(name).masked_fill_(~mask.unsqueeze(-1), 0.0)
