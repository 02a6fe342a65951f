"""The passes for CUDA, written in Triton."""
