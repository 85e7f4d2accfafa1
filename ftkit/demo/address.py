"""The address of the page."""

import socket

from ftkit.errors import UserError


def check_address(host: str, port: int | None) -> None:
    """Check that the page can be served at this address; gradio would try for minutes.

    Raises:
        UserError: the port is taken, or the host is not an address of this machine.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise UserError(f"cannot listen on {where}: {error.strerror}: give another --port or --host") from None
