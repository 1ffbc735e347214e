"""Weights & Biases, online or offline. The package is imported here alone, when a recipe asks for it.

Every record is a row of its own, with the training step as the axis of all charts ("step"), so that a record of an earlier step
(the weights that were kept) is not refused. Offline, a resumed run is written anew from the records that it kept. Online it goes
on under its id; rows beyond the checkpoint cannot be taken back, and the steps done again come a second time. W&B's rewind is not
used: it is a preview for some accounts. Its console capture, system statistics, source code, git state and metadata are off.
"""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from .. import config
from ..types import DirectAlignError
from .trackers import PICTURES, About, Pixels, Values

AXIS = "step"
FORMER_HOST = "api.wandb.ai"
"""Where the keys of most .netrc files are filed."""
START_TIMEOUT, FINISH_TIMEOUT = 45.0, 60.0
"""Seconds to reach W&B when a run starts, and to send what is left when it ends."""
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": START_TIMEOUT,
    "finish_timeout": FINISH_TIMEOUT,
    "finish_timeout_raises": True,
}


def require(settings: config.Wandb) -> ModuleType:
    """The package, which must be installed and, online, logged in. Nothing is sent. Raises DirectAlignError with the line that mends it."""
    try:
        import wandb
    except ImportError as error:
        raise DirectAlignError("track.wandb: needs the package wandb; pip install 'directalign[wandb]', or leave track.wandb out") from error
    if settings.mode == "online" and not _has_login(wandb):
        raise DirectAlignError("track.wandb: no login found; run `wandb login`, set WANDB_API_KEY, or set track.wandb.mode: offline")
    return wandb


class WandbRun:
    """An open run."""

    def __init__(self, package: ModuleType, run: Any, caption: str) -> None:
        self._wandb, self._run, self._caption = package, run, caption
        self.remembers: bool = run.resumed
        run.define_metric(AXIS, hidden=True)
        run.define_metric("*", step_metric=AXIS)

    def record(self, values: Values, step: int) -> None:
        self._run.log({**values, AXIS: step})

    def picture(self, pixels: Pixels, step: int) -> None:
        self._run.log({PICTURES: self._wandb.Image(Image.fromarray(pixels), caption=self._caption), AXIS: step})

    def summary(self, found: Mapping[str, Any]) -> None:
        self._run.summary.update(found)

    def close(self, finished: bool) -> None:
        """Raises OSError when the service behind the run has died without a word: its file is then empty."""
        self._run.finish(exit_code=0 if finished else 1)
        if not any(file.stat().st_size for file in Path(self._run.dir).parent.glob("*.wandb")):
            raise OSError(f"{self._run.dir}: nothing was written")


def open_run(settings: config.Wandb, out: Path, about: About, say: Callable[[str], None]) -> WandbRun:
    """The run with the key of `about`, its files in `out/wandb`; when W&B cannot be reached, an offline one, which is said.

    Raises: DirectAlignError as `require`, and whatever wandb raises when not even an offline run can be opened.
    """
    wandb = require(settings)
    if settings.mode == "online":
        try:
            run = _started(wandb, settings, "online", out, about)
        except Exception as error:  # wandb raises kinds of its own and of its service's for one and the same trouble
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            say(f"warning: Weights & Biases cannot be reached ({reason:.200}); the run is recorded offline")
            wandb.teardown()  # its service holds the run's id
        else:
            say(f"Weights & Biases: {run.url}")
            return WandbRun(wandb, run, about.caption)
    run = _started(wandb, settings, "offline", out, about)
    say(f"Weights & Biases: offline; send it with {_sync(out, about)}")
    return WandbRun(wandb, run, about.caption)


def remedy(out: Path, about: About) -> str:
    """How to bring a run there later."""
    return f"To catch up: --resume it with --set track.wandb.mode=offline, which writes it anew, then {_sync(out, about)}"


def _sync(out: Path, about: About) -> str:
    return f"wandb sync {out}/wandb/offline-run-*-{about.key}"


def _started(wandb: ModuleType, settings: config.Wandb, mode: str, out: Path, about: About) -> Any:
    """wandb's own run. Offline it starts anew: the former copy goes, and the whole session is offline, or it would look for the network all the same."""
    if mode == "offline":
        for former in (out / "wandb").glob(f"offline-run-*-{about.key}"):
            shutil.rmtree(former)
        wandb.setup(wandb.Settings(mode="offline"))
    return wandb.init(
        id=about.key,
        project=settings.project,
        entity=settings.entity,
        name=settings.name or about.name,
        tags=settings.tags,
        config=dict(about.config),
        dir=str(out),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(**QUIET),
    )


def _has_login(wandb: ModuleType) -> bool:
    """Whether a key or identity token is in the environment, in W&B's settings or in a .netrc file."""
    found = wandb.setup().settings
    if found.api_key or found.identity_token_file:
        return True
    try:
        file = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    except FileNotFoundError:
        return False
    except (netrc.NetrcParseError, OSError) as error:
        raise DirectAlignError(f"track.wandb: the login cannot be read ({error}); mend that file, or set WANDB_API_KEY") from error
    return any(file.authenticators(host) for host in (urlsplit(found.base_url).netloc, FORMER_HOST))
