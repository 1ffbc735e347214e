"""The running server: its address, the links it prints, uvicorn. On this machine alone unless a host is given; then an invitation is needed."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from .asking import Arena
from .patience import PatientNoMore
from .records import ArenaError
from .server import create_app

LOCAL = "127.0.0.1"
LAST_SECONDS = 5
"""For what is under way when the arena ends."""
BACKLOG = 2048
"""Connections that may wait to be accepted: a class that starts at the same moment."""


def serve(arena: Arena, host: str | None, port: int, annotators: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve until interrupted (Ctrl-C or SIGTERM), then give the database back.

    Args:
        host: where to listen; None for this machine alone.
        port: 0 takes a free one.
        annotators: names that get a link each; then nobody else may join.
        say: where the links, and what is asked, are printed.
    Raises:
        ArenaError where the address cannot be had.
    """
    listening = _listen(host or LOCAL, port)
    invitation = host is not None and not _is_loopback(host)
    links = arena.links(annotators)
    for line in _links(arena, _address(host or LOCAL, listening.getsockname()[1]), invitation, links):
        say(line)
    say(arena.summary())
    _log_in_lines()
    app = create_app(arena, own_names(host), invitation, bool(annotators))
    config = uvicorn.Config(
        app,
        http=PatientNoMore,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=LAST_SECONDS,
        backlog=BACKLOG,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends in order, then raises the signal again
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        arena.close()


def own_names(host: str | None) -> frozenset[str]:
    """Names by which a browser may call this server, beside addresses in numbers."""
    names = {"localhost", *([host.lower()] if host else [])}
    if host is not None and not _is_loopback(host):
        here = socket.gethostname().lower()
        names |= {here, f"{here}.local", socket.getfqdn().lower()}
    return frozenset(names)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) or error.errno is None else os.strerror(error.errno)
        raise ArenaError(f"--host {host} --port {port}: cannot listen there ({reason}); name another one, --port 0 takes a free one") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, port: int) -> str:
    """What to write before a path; for all addresses of the machine the one that others would reach."""
    shown = _outward() if host in ("0.0.0.0", "::") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _outward() -> str:
    """This machine's address in its network; asking for a route sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            return socket.gethostname()
        return asked.getsockname()[0]


def _links(arena: Arena, address: str, invitation: bool, links: dict[str, str]) -> list[str]:
    joining = f"{address}/invitation/{arena.blind.token('invitation')}" if invitation else f"{address}/"
    lines = [f"{name}: {address}/me/{link}" for name, link in links.items()] or [f"annotators: {joining}"]
    return [*lines, f"results, for you alone: {address}/owner/{arena.blind.token('owner')}"]


def _log_in_lines() -> None:
    """Refusals and faults on stderr, with the time."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    for name, level in (("directalign.arena", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).addHandler(shown)
        logging.getLogger(name).setLevel(level)
