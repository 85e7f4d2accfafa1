"""recipes/finetune.py under FSDP or DeepSpeed on CPUs, which accelerate is told are accelerators."""

import sys

import transformers.training_args
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from support import load_recipe_script

from ftkit.errors import user_errors

PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
transformers.training_args.is_torch_bf16_gpu_available = lambda: True
with user_errors():
    load_recipe_script("finetune").main(sys.argv[1:])
