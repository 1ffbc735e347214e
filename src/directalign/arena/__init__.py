"""Blind human comparison in a browser: the server, its records, and what they say about the models."""
