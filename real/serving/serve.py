"""The verb `serve`: open a policy's file, which may be hostile, and serve it until told to stop."""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import pathlib
import resource
import signal
import ssl
import sys
from collections.abc import Iterator

from penspin_style.deploy.bundle import Bundle, BundleError
from penspin_style.deploy.policy import Policy
from penspin_style.system import interrupt
from penspin_style.system.terminal import one_line
from real.serving.server import PolicyServer, ServeError, ServerLimits

MIB = 2**20
_MAX_KEY = 4096


def run(args: argparse.Namespace) -> int:
    """Serve; return 0 once told to stop (SIGTERM, SIGINT, SIGHUP), 2 if it cannot begin."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        key, tls = _key(args), _tls(args)
        limits = ServerLimits(
            max_frame=None if args.max_frame is None else args.max_frame * MIB,
            max_connections=args.max_connections,
        )
        policy = _adapted(Bundle.load(args.policy), args.adapter)
        server = PolicyServer(
            policy,
            host=args.host,
            port=args.port,
            api_key=key,
            tls=tls,
            insecure=args.insecure,
            limits=limits,
        )
        with memory_limit(args.memory * MIB):
            asyncio.run(_serve(server, as_json=args.json))
    except (BundleError, ServeError) as error:
        print(f"penspin: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _adapted(policy: Bundle, adapter: str | None) -> Policy:
    """Return the policy for the clients that are to come.

    Raises:
        ServeError: they do not send what it reads.
    """
    if adapter is None:
        return policy
    from real.serving.aloha import AlohaAdapter

    return AlohaAdapter(policy)


async def _serve(server: PolicyServer, *, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    handled = interrupt.handled()

    def stop() -> None:
        for number in handled:
            if number != signal.SIGHUP:  # a lost terminal sends it more than once
                loop.remove_signal_handler(number)  # a second one ends the process at once
        interrupt.silence_lost()
        server.stop()

    def listening() -> None:
        # nothing that is there now will ever be garbage
        gc.collect()
        gc.freeze()
        card = server.policy.card
        facts = {"url": server.url, "task": card.task, "run": card.run, "pid": os.getpid()}
        text = json.dumps(facts) if as_json else f"serving {card.task} on {server.url}"
        print(text, flush=True)

    for number in handled:
        loop.add_signal_handler(number, stop)
    await server.serve(listening)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let this process allocate so many bytes; what asks for more fails there, and only that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _key(args: argparse.Namespace) -> str | None:
    """Return the API key that clients must know; None for none."""
    if args.api_key_file is None:
        return args.api_key
    path = pathlib.Path(args.api_key_file)
    if not path.is_file():
        raise ServeError(f"--api-key-file {path} is not a file; write one line with the key")
    try:
        with path.open("rb") as file:
            shared = os.fstat(file.fileno()).st_mode & 0o077
            key = file.read(_MAX_KEY).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"--api-key-file {path}: {error}") from error
    if not key:
        raise ServeError(f"--api-key-file {path}: holds no key; write one line with it")
    if shared:
        logging.warning("others on this computer can read the key in %s; chmod 600 it", path)
    return key


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return how connections are encrypted; None for not at all."""
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise ServeError("--tls-cert and --tls-key belong together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # a password is not asked for: nobody may be there to type it
        context.load_cert_chain(args.tls_cert, args.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ServeError(
            f"--tls-cert {args.tls_cert} --tls-key {args.tls_key}: {error}; give PEM files, the "
            "key without a password"
        ) from error
    return context
