"""Precision as a property of the graph: fp16 and int8 ONNX files from fp32 ones, and what they cost."""
