"""The mathematics of the method, on tensors alone: noise paths, recovery, noise levels,
sampling."""
