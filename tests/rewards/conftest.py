"""The tiny CLIP folder that reward tests share."""

from __future__ import annotations

from tiny_clip import clip_folder

__all__ = ["clip_folder"]
