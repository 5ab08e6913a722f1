"""What a detector is: its spec, the torch network, checkpoints, ONNX export, the model zoo."""
