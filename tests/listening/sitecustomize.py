"""Python imports this at the start of every process that has the folder on its PYTHONPATH: it writes down that the
process is there, and each address that it looks up or connects to."""

import os
import sys

HEARD = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto")


def write(event, host):
    with open(os.environ["HEARD"], "a") as file:
        file.write(f"{event}\t{host}\t{' '.join(' '.join(sys.orig_argv).split())[:300]}\n")


def note(event, args):
    if event in HEARD:
        host = args[0] if isinstance(args[0], (str, bytes, type(None))) else args[1]
        write(event, host[0] if isinstance(host, tuple) else host)


if "HEARD" in os.environ:
    write("started", "localhost")
    sys.addaudithook(note)
