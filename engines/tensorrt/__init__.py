"""TensorRT, from 10.12 to 11: building plans, loading them and looking into them.

Precision is a property of the graph that is built, never a flag. Members that differ between versions are probed by
name. What is used of the bindings is checked against the real ones by the tests, without a GPU.
"""
