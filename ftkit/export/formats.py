"""Writing a classifier in other formats, and loading the file as a function from images to logits."""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from ftkit.errors import UserError
from ftkit.export import FORMATS
from ftkit.methods.adapters import merged

# From float32 (N, C, H, W) to logits (N, classes).
Predict = Callable[[torch.Tensor], torch.Tensor]
INPUT, OUTPUT = "pixel_values", "logits"
# These operations do nearly all the work. Those in between stay exact: softmax, GELU, layer normalisation.
_QUANTIZED = ["Conv", "Gemm", "MatMul"]


class LogitsOnly(nn.Module):
    """`model` with the logits as its only output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float (N, C, H, W) -> float (N, classes)."""
        return self.model(pixel_values=pixel_values).logits


def plain_model(model: PreTrainedModel | PeftModel, pixel_values: torch.Tensor) -> LogitsOnly:
    """A float32 copy for inference, with any adapters merged into its weights.

    Args:
        pixel_values: float32 (B, C, H, W), images to compare logits on before and after merging.

    Raises:
        UserError: the adapters cannot be merged.
    """
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    if isinstance(model, PeftModel):
        try:
            model = merged(model, pixel_values).eval()
        except UserError as error:
            raise UserError(f"model: its adapters must be merged into its weights for an export. {error}") from None
    return LogitsOnly(model)


def capture(model: LogitsOnly, pixel_values: torch.Tensor) -> ExportedProgram:
    """The computation of `model` as a graph for any number of images.

    Args:
        pixel_values: float32 (B, C, H, W), at least two images, because a batch of one may become a fixed size.

    Raises:
        UserError: torch.export does not support the model.
    """
    with _exporting("torch.export"), torch.no_grad():
        program = torch.export.export(model, (pixel_values,), dynamic_shapes={INPUT: {0: Dim("batch")}})
        program.example_inputs = None  # the only pickle in a .pt2 file
        for node in program.graph.nodes:  # it names files of this machine
            node.meta.pop("stack_trace", None)
    return program


def write(name: str, program: ExportedProgram, path: Path, calibration: Iterable[torch.Tensor]) -> None:
    """Write one format to a file.

    Args:
        name: the name of the format.
        program: the result of `capture`.
        calibration: batches of images for int8, float32 (B, C, H, W).

    Raises:
        UserError: the exporter does not support the model.
    """
    if name == "torch_export":
        with _exporting("torch.export"):
            torch.export.save(program, path)
    elif name == "onnx":
        _write_onnx(program, path)
    else:
        _write_int8(program, path, calibration)


def load(path: Path) -> Predict:
    """The function in a file written here, on the CPU, with as many threads as torch uses.

    Do not load a .pt2 file from another source: it may hold code that would run.
    """
    if path.suffix == ".pt2":
        return torch.export.load(path).module()

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file with its weights inside, or beside it from 2 GB on."""
    shapes = {INPUT: {0: "batch"}}
    with _exporting("torch.onnx"):
        torch.onnx.export(
            program,
            f=path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


def _write_int8(program: ExportedProgram, path: Path, calibration: Iterable[torch.Tensor]) -> None:
    """Write an ONNX file quantised to 8 bits: weights by output channel, activations by their range.

    The range is minimum to maximum over the calibration images. Percentiles (99.99, 99.999) and entropy agreed with
    PyTorch's predictions as often, within 0.15 points (two convnets and a ViT, on MNIST and CIFAR-10, 256 calibration
    images), and keep all activations in memory.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with tempfile.TemporaryDirectory() as scratch:
        exact, prepared = path.with_name(FORMATS["onnx"]), Path(scratch) / "prepared.onnx"
        if not exact.is_file():  # ONNX was not requested
            exact = Path(scratch) / exact.name
            _write_onnx(program, exact)
        with _exporting("onnxruntime"):
            # The exporter wrote the shapes already; onnxruntime's symbolic inference fails on a global maximum.
            quant_pre_process(exact, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                path,
                Batches(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTIZED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7-bit weights: with 8 bits, sums overflow on x86 processors without VNNI
                # Logits must not be clipped to the range of those of the calibration images.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
            )


@contextlib.contextmanager
def _exporting(library: str) -> Iterator[None]:
    """Silence what an exporter prints, warns and logs; turn its failure into one message."""
    disabled, output = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # anything raised by the model's or the exporter's code
        raise UserError(f"model: {library} cannot export it: {first_lines(error)}") from error
    finally:
        logging.disable(disabled)


def first_lines(error: BaseException) -> str:
    """The message of the first in a chain of errors, shortened to a line or two."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"
