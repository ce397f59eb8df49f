"""The operator in Triton kernels. `dispatch` is the backend, and the only way to the modules that need triton."""
