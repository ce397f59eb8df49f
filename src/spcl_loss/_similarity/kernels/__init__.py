"""The operator in Triton kernels. Importing this package imports no triton; `dispatch` does."""
