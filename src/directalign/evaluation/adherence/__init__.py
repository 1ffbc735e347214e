"""Prompt adherence fact by fact: by a detector and GenEval's rules, or a vision-language model."""
