"""A pretended device for machines without a GPU: its tensors compute on the CPU and say that they are elsewhere.

Code that fails on a GPU because it mixes devices, or hands NumPy memory that it cannot read, fails here too.
Everything that makes the host wait for a GPU is counted:

    with pretend_device() as pretended:
        model.to(pretended.device)(images.to(pretended.device))  # works, with real values and gradients
        model(images)  # RuntimeError: at least two devices
        loss.item()
    pretended.waits  # Counter({"aten::_local_scalar_dense in __main__:3": 1, "a copy to the device in …": …})

The device's type is `lazy`: code that asks sees that it is not the CPU, but autograd runs its backward on CPU threads,
so no driver is needed. It does not model kernels, streams, memory, speed, autocast for `cuda`, or NCCL.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator

import torch
import torch.optim.optimizer as optimizers
import transformers
from accelerate.state import PartialState
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# The host needs a value to continue: a number, or the size of the result.
_VALUES = (
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::unique_dim",
)
# Operations of image classifiers without a deterministic version on CUDA.
_NOT_DETERMINISTIC = (
    "aten::_adaptive_avg_pool2d_backward",
    "aten::adaptive_max_pool2d_backward",
    "aten::grid_sampler_2d_backward",
    "aten::kthvalue",
    "aten::reflection_pad2d_backward",
    "aten::replication_pad2d_backward",
    "aten::upsample_bicubic2d_backward",
    "aten::upsample_bilinear2d_backward",
)


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device whose values lie in `elem`, on the CPU."""

    @staticmethod
    def __new__(cls, elem: torch.Tensor, pretended: "Pretended"):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=pretended.device,
            requires_grad=elem.requires_grad,
        )
        made.elem, made.pretended = elem.detach(), pretended
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
        return tensors[0].pretended.run(func, args, kwargs or {})

    def __repr__(self):
        return f"Elsewhere({self.elem})"

    # A GPU's tensor can do these, but torch refuses them to subclasses. (`numpy` fails on a GPU too.)
    def tolist(self):
        self.pretended.note("aten::_local_scalar_dense")
        return self.elem.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        self.elem = value.elem

    def __reduce_ex__(self, protocol):
        return self.elem.__reduce_ex__(protocol)

    def storage(self):
        return self.elem.storage()

    def untyped_storage(self):
        return self.elem.untyped_storage()

    def data_ptr(self):
        return self.elem.data_ptr()


class Pretended:
    """The pretended device, and everything that the host has waited for.

    Attributes:
        device: of the tensors.
        waits: how often, by cause (an operation, `a copy to the CPU`, `a copy to the device`) and place.
        float64: whether the device has float64, which Apple's lacks.
    """

    def __init__(self, float64: bool):
        self.device, self.float64, self.waits = torch.device("lazy", 0), float64, Counter()

    def note(self, what: str) -> None:
        """Count something that makes the host wait for a GPU."""
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].partition(".")[0] in (__name__, "torch"):
            frame = frame.f_back
        self.waits[f"{what} in {frame.f_globals['__name__']}:{frame.f_lineno}"] += 1

    def run(self, func, args: tuple, kwargs: dict):
        """Run an operation, whichever devices its tensors are on."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
        name = func._schema.name
        if name in ("aten::to", "aten::_to_copy"):  # `to` is not decomposed in inference mode
            return self._copied(func, args, kwargs)
        if name == "aten::copy_":
            source, target = args[1], args[0]
            self._note_copy(source, isinstance(target, Elsewhere), (*args[2:], *kwargs.values()))
            func(*tree_map(_elem, args), **tree_map(_elem, kwargs))
            return target
        if not there and "device" not in kwargs:
            return func(*args, **kwargs)
        asked = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == self.device.type
        if asked:
            kwargs = kwargs | {"device": torch.device("cpu")}
        if there:
            self._check(name, args, here)
        made = func(*tree_map(_elem, args), **tree_map(_elem, kwargs))
        if there and func._schema.returns:
            return return_and_correct_aliasing(func, args, kwargs, tree_map(self._there, made))
        return tree_map(self._there, made) if asked else made

    def _check(self, name: str, args: tuple, here: list[torch.Tensor]) -> None:
        """Refuse what a GPU refuses, and note what makes the host wait."""
        indexing = name in _INDEXING and isinstance(args[0], Elsewhere)  # indices on the CPU are copied
        if any(tensor.dim() for tensor in here) and not indexing:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{self.device} and cpu! ({name})"
            )
        if torch.are_deterministic_algorithms_enabled() and name in _NOT_DETERMINISTIC:
            raise RuntimeError(f"{name} does not have a deterministic implementation, but you set …")
        masks = indexing and any(tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if tensor is not None)
        fills = masks and len(args) > 2 and not args[2].dim() and not isinstance(args[2], Elsewhere)  # masked_fill_
        if name in _VALUES or (masks and not fills):
            self.note(name)
        elif indexing and any(tensor.dim() for tensor in here):
            self.note("a copy to the device")

    def _copied(self, func, args: tuple, kwargs: dict):
        given = (*args[1:], *kwargs.values())
        places = [value for value in given if isinstance(value, torch.device | torch.Tensor)]
        wanted = getattr(places[0], "device", places[0]) if places else args[0].device
        there = wanted.type == self.device.type
        self._note_copy(args[0], there, given if kwargs.get("non_blocking") is None else (kwargs["non_blocking"],))
        made = func(*tree_map(self._home, args), **tree_map(self._home, kwargs))
        return self._there(made) if there else made

    def _note_copy(self, source: torch.Tensor, there: bool, options: tuple) -> None:
        if isinstance(source, Elsewhere) and not there:
            self.note("a copy to the CPU")
        elif not isinstance(source, Elsewhere) and there and True not in options:
            self.note("a copy to the device")

    def _home(self, value):
        is_here = isinstance(value, torch.device) and value.type == self.device.type
        return torch.device("cpu") if is_here else _elem(value)

    def _there(self, value):
        if not isinstance(value, torch.Tensor) or isinstance(value, Elsewhere):
            return value
        if value.dtype == torch.float64 and not self.float64:
            raise TypeError(f"{self.device.type} has no float64")
        return Elsewhere(value, self)


def _elem(value):
    return value.elem if isinstance(value, Elsewhere) else value


class _Mode(TorchDispatchMode):
    def __init__(self, pretended: Pretended):
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.pretended.run(func, args, kwargs or {})


@contextlib.contextmanager
def pretend_device(float64: bool = True) -> Iterator[Pretended]:
    """Make the `Trainer` and accelerate use the pretended device within the block.

    Args:
        float64: whether the device has float64.
    """
    pretended = Pretended(float64)
    with contextlib.ExitStack() as stack:
        _patch(stack, pretended.device)
        stack.enter_context(_Mode(pretended))
        yield pretended


def _patch(stack: contextlib.ExitStack, device: torch.device) -> None:
    state, autocast = PartialState.__init__, torch.autocast.__init__

    def with_device(self, *args, **kwargs):
        state(self, *args, **kwargs)
        self.device = device

    def autocast_here(self, device_type, *args, **kwargs):
        autocast(self, "cpu" if device_type == device.type else device_type, *args, **kwargs)

    fused = optimizers._get_fused_kernels_supported_devices

    for owner, name, value in (
        (optimizers, "_get_fused_kernels_supported_devices", lambda: [*fused(), device.type]),
        (PartialState, "__init__", with_device),
        (torch.autocast, "__init__", autocast_here),
        (transformers.TrainingArguments, "device", property(lambda self: (self._setup_devices, device)[1])),
        (torch.accelerator, "get_memory_info", lambda device=None: (8 << 30, 8 << 30)),
    ):
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)
    # `Module.to` cannot set a parameter's data to a tensor of another class, but can swap the two.
    stack.callback(torch.__future__.set_swap_module_params_on_conversion,
                   torch.__future__.get_swap_module_params_on_conversion())  # fmt: skip
    torch.__future__.set_swap_module_params_on_conversion(True)
    # `torch.tensor(…, device=…)` first makes a tensor on the CPU, then copies it.
    stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)
