"""Tells a service manager such as systemd (`Type=notify`) that the receiver listens; sd_notify(3) has the protocol."""

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("receiver")


def say_ready(environment: Mapping[str, str] = os.environ) -> None:
    """Without NOTIFY_SOCKET nobody waits for it."""
    if address := environment.get("NOTIFY_SOCKET"):
        if address.startswith("@"):  # an abstract socket
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.sendto(b"READY=1", address)
        except OSError as error:
            log.error("the service manager could not be told that the receiver is ready: %s", error.strerror)
