"""Prompt adherence fact by fact: by a detector and GenEval's rules, or a vision-language model."""

from .settings import adherence_of

__all__ = ["adherence_of"]
