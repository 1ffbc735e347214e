"""A run as typed, strict YAML: `run` has the whole, `methods` and `rewards` two of
its sections."""

from .base import *  # noqa: F403
from .method_parts import *  # noqa: F403
from .methods import *  # noqa: F403
from .rewards import *  # noqa: F403
from .rollout import *  # noqa: F403
from .run import *  # noqa: F403
