"""Where the page is served."""

import socket

from ftkit.errors import UserError


def check_address(host: str, port: int | None) -> None:
    """Check that the page can be served there; gradio would try for minutes.

    Raises:
        UserError: the port is taken, or the host is no address of this machine.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise UserError(f"cannot listen on {where}: {error.strerror}: give another --port or --host") from None
