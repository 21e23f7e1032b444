"""`onecount gateway`, and its small commands: make a key, tell a pixel's secret, sign a pixel, print the OpenAPI document."""

import re
from typing import Annotated

import typer

from app.gateway import GatewayError, keys
from app.settings import Settings, from_environment

app = typer.Typer(invoke_without_command=True, help="Take events over HTTP, until stopped (docs/gateway.md).")


@app.callback()
def gateway(context: typer.Context) -> None:
    """Take events over HTTP: from servers with a key, from browsers by pixel and script. Until stopped.

    http://127.0.0.1:8430 unless ONECOUNT_GATEWAY_HOST and ONECOUNT_GATEWAY_PORT say otherwise.
    """
    if context.invoked_subcommand is None:
        from app.gateway.serve import serve

        raise typer.Exit(serve(from_environment()))


@app.command()
def key(key_id: Annotated[str, typer.Argument(help="What to call it: a-z, 0-9 and -.")]) -> None:
    """Make an API key. The key is shown this once; the file gets its hash."""
    if not re.fullmatch(keys.ID, key_id):
        raise typer.BadParameter(f"{key_id!r}: up to 40 of a-z, 0-9 and -", param_hint="KEY_ID")
    made, digest = keys.new_key(key_id)
    typer.echo(f"# for the sender, and nobody else:\n{made}\n")
    typer.echo(
        f"# for the file that ONECOUNT_GATEWAY_CONFIG names:\nkeys:\n  {key_id}:\n    sha256: '{digest}'\n    advertisers: [...]"
    )


@app.command("pixel-secret")
def pixel_secret(
    advertiser_id: Annotated[str, typer.Argument()],
    key_id: Annotated[str, typer.Argument(help="One of the advertiser's pixel_keys.")],
) -> None:
    """Tell what an advertiser signs its pixels with: HMAC-SHA256 of the query string, in hex, as its last parameter `sig`."""
    typer.echo(keys.pixel_secret(_secret(from_environment()), advertiser_id, key_id))


@app.command()
def sign(
    advertiser_id: Annotated[str, typer.Argument()],
    key_id: Annotated[str, typer.Argument(help="One of the advertiser's pixel_keys.")],
    query: Annotated[str, typer.Argument(help="event_type=view&event_id=...; without advertiser_id and key.")],
) -> None:
    """Sign a pixel: the query string to put behind /p.gif?"""
    signed = f"advertiser_id={advertiser_id}&key={key_id}&{query}"
    secret = keys.pixel_secret(_secret(from_environment()), advertiser_id, key_id)
    typer.echo(f"{signed}&sig={keys.sign(signed.encode(), secret)}")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document, as /openapi.json answers it."""
    from app.gateway.openapi import document

    typer.echo(document().decode())


def _secret(settings: Settings) -> str:
    if settings.gateway_secret is None:
        raise GatewayError("set ONECOUNT_GATEWAY_SECRET as the gateway has it")
    return settings.gateway_secret.get_secret_value()
