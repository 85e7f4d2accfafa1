"""recipes/finetune.py under FSDP or DeepSpeed on processors, which accelerate is told are accelerators."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from support import load_recipe_script

from ftkit.errors import user_errors

PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
with user_errors():
    load_recipe_script("finetune").main(sys.argv[1:])
