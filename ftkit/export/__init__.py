"""A trained model as one file that runs without ftkit: ONNX, 8-bit ONNX, or a program of torch.export."""

# The formats by their names on the command line, and the file of each.
FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2", "int8": "model_int8.onnx"}
