"""A model as a folder with one ONNX file."""
