"""Prompts and images for training: sources, buckets, order."""



