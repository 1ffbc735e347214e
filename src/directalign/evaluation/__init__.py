"""Measurement: fixed prompt-seed pairs, images of them, scores with intervals, and drift. Never
trained on."""
