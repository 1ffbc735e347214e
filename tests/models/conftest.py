"""Tiny pipelines for the tests of this folder."""

from __future__ import annotations

from tiny import tiny_flux, tiny_sd, tiny_sd_v

__all__ = ["tiny_flux", "tiny_sd", "tiny_sd_v"]
