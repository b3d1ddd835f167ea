"""What runs a model: the only place where onnxruntime, torch and tensorrt are imported."""
