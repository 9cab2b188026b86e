"""Triton kernels, a module for each operation: the kernel, and the function that launches it on torch tensors."""
