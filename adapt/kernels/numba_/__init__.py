"""The passes for the CPU, compiled by Numba."""
