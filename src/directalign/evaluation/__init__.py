"""Evaluation: fixed prompt-seed pairs, their images, scores with intervals, and drift."""
