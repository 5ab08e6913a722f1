"""Per-pixel and per-anchor work, as NumPy and OpenCV references with the signatures of the CUDA kernels."""
