"""A trained model as a single file that runs without ftkit: ONNX, 8-bit ONNX, or a torch.export program."""

# The formats by their command-line names, with the file of each.
FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2", "int8": "model_int8.onnx"}
