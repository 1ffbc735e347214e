"""Real images with captions, for offline training: scanned first, so that a broken one is named before training starts.

A set is a folder (`folder`) or a Hugging Face dataset (`dataset`). `scan` decodes every image once and keeps captions and
sizes, never pixels; `buckets` sorts them by aspect ratio; `stream` deals them out; `pixels` decodes and fits.
"""

from __future__ import annotations

from .buckets import Bucket, check_buckets, fill_buckets, suggest_buckets
from .image_io import load_image
from .scan import ImageSet, scan_images
from .stream import ImageStream

__all__ = ["Bucket", "ImageSet", "ImageStream", "check_buckets", "fill_buckets", "load_image", "scan_images", "suggest_buckets"]
