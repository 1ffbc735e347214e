"""The paper's experiments and ours: `python -m experiments NAME`, one module per study."""
