"""``ui``: pages in a browser: workers and queues live, dead letters, requests, findings."""

from typing import Annotated

import typer

from worker.cli.options import AmqpUrl, DatabaseUrl, Queue, err, out, run_async

DEFAULT_PORT = 8411


def ui(
    worker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A worker's side port (default: WORKER_HTTP_PORT on this machine). May be given several "
            "times. A name that has several addresses stands for a worker each.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen at. 0: any free port.")
    ] = DEFAULT_PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A host name by which a proxy reaches this. May be given several times. Others get 403.",
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two reads.")] = 2.0,
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
    queue: Queue = None,
) -> None:
    """Serve pages for a browser: workers, dead letters, a request, doctor. Prints their URL, which
    has a token. Ctrl-C ends it.

    The token gives its owner the rights of this command at the broker.
    """
    from worker.observability.logs import configure_logging
    from worker.settings import load_settings
    from worker.ui.access import LOOPBACK
    from worker.ui.server import serve

    for url in worker or []:
        if not url.startswith(("http://", "https://")):
            raise typer.BadParameter(f"'{url}' is no URL such as http://worker:8080", param_hint="--worker")
    settings = load_settings(amqp_url=amqp_url, database_url=database_url, queue=queue)
    configure_logging(settings.log_format, settings.log_level)
    if host not in LOOPBACK:
        err.print(
            "[yellow]warning[/]: others may read what goes over this port, the token too: put TLS before it, "
            "or listen at 127.0.0.1 and forward the port.",
            highlight=False,
            soft_wrap=True,
        )

    def tell(url: str) -> None:
        out.print(f"Open {url}", highlight=False, soft_wrap=True, markup=False)

    run_async(
        serve(
            settings,
            worker or [f"http://127.0.0.1:{settings.http_port}"],
            host=host,
            port=port,
            names=allow_host or [],
            interval=interval,
            on_open=tell,
        )
    )
