"""What was trained, for others: ordinary models of transformers, a folder for the hub, ONNX."""
