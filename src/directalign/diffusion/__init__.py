"""The mathematics of the method, on tensors: noise paths, recovery, noise levels, sampling."""
