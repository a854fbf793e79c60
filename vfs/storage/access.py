"""How to reach a bucket: endpoint, credentials and clients, from the environment and the AWS files.

Endpoint: R2_ENDPOINT, else R2_ACCOUNT_ID, else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile's. Keys:
R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, else those of AWS, else the ordinary chain (profiles, SSO, instance
metadata). Credentials that expire are renewed by botocore; files that changed are read again when the store
refuses (`Access.renewed`). A bucket in another region than the one that is named says so, and is asked there
(`Access.moved`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions

from vfs.errors import ConfigError, Denied
from vfs.storage.connections import Connections
from vfs.storage.r2copy import speak_r2
from vfs.storage.signing import SignedGets

#: Seconds to a connection: several round trips around the world.
CONNECT_TIMEOUT = 5.0
#: Seconds without a byte after which a connection counts as dead, at most; a third of the deadline if less,
#: so that there is time for another attempt.
READ_TIMEOUT = 20.0
#: Attempts botocore makes by itself, unseen: our own policy stands above it.
BOTO_ATTEMPTS = 1
#: Threads for head and list beside those for reads, so that `ls` never waits behind a copy.
METADATA_THREADS = 16
#: Threads besides, for calls that were given up while they connected: nothing ends those before
#: CONNECT_TIMEOUT. (All others end at once.)
ABANDONED_THREADS = 64
R2_DOMAIN = ".r2.cloudflarestorage.com"
_NO_KEYS = "no credentials: set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, or an AWS profile (AWS_PROFILE)"


@dataclass(frozen=True, slots=True)
class Target:
    """A bucket and all that decides how it is reached. environ: read again by `connect`. region: the one the
    store named, whatever the environment says.
    """

    scheme: str
    bucket: str
    prefix: str
    deadline: float
    connections: int
    environ: Mapping[str, str]
    region: str | None = None

    @property
    def threads(self) -> int:
        """Calls under way at one time, those that were given up included."""
        return self.connections + METADATA_THREADS + ABANDONED_THREADS


@dataclass(frozen=True, slots=True)
class Access:
    """A boto3 client for metadata and `SignedGets` for bodies, with one set of credentials.

    identity: which credentials these are; equal for equal ones.
    """

    target: Target
    client: Any
    gets: SignedGets
    connections: Connections
    region: str
    identity: tuple[object, ...]

    def renewed(self) -> Access | None:
        """Another one, if the environment's files now hold other credentials."""
        fresh = connect(self.target)
        if fresh.identity == self.identity:
            fresh.close()
            return None
        return fresh

    def moved(self, region: str) -> Access:
        """Another one, for the region where the bucket is."""
        return connect(replace(self.target, region=region))

    def close(self) -> None:
        """Close idle connections."""
        self.connections.close()
        self.client.close()


def connect(target: Target) -> Access:
    """Clients for a bucket; asks nothing of it. Raises ConfigError, and Denied without credentials."""
    try:
        return _connect(target)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise ConfigError(f"source {target.scheme}://{target.bucket}: {error}") from error


def endpoint_of(target: Target) -> str | None:
    """The endpoint the environment names; None = boto3's own choice. Raises ConfigError."""
    environ = target.environ
    endpoint = environ.get("R2_ENDPOINT")
    if not endpoint and (account := environ.get("R2_ACCOUNT_ID")):
        endpoint = f"https://{account}{R2_DOMAIN}"
    endpoint = endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
    if endpoint is None:
        if target.scheme == "r2":
            raise ConfigError(
                "r2:// needs an endpoint: set R2_ACCOUNT_ID (or R2_ENDPOINT) in the environment"
            )
        return None
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        is_url = False
    if not is_url:
        raise ConfigError(f"endpoint {endpoint!r} is not a URL: give https://HOST")
    # Cloudflare's dashboard shows the endpoint with the bucket behind it.
    if parts.path.strip("/") not in ("", target.bucket):
        raise ConfigError(f"endpoint {endpoint!r} has a path: give https://HOST alone")
    return f"{parts.scheme}://{parts.netloc}"


def _connect(target: Target) -> Access:
    environ, endpoint = target.environ, endpoint_of(target)
    session = _session(environ)
    credentials = session.get_credentials()
    if credentials is None:
        raise Denied(_NO_KEYS)
    named = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or session.region_name
    # R2 knows no region of AWS, whichever scheme it is called by.
    is_r2 = target.scheme == "r2" or (endpoint or "").endswith(R2_DOMAIN)
    region = "auto" if is_r2 else target.region or named or "us-east-1"
    read_timeout = max(1.0, min(READ_TIMEOUT, target.deadline / 3))
    bundle = (
        environ.get("AWS_CA_BUNDLE")
        or session._session.get_config_variable("ca_bundle")
        or environ.get("REQUESTS_CA_BUNDLE")
    )
    if bundle and not os.path.exists(bundle):
        raise ConfigError(f"the bundle of certificates {bundle!r} does not exist (AWS_CA_BUNDLE)")
    client = session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        verify=bundle or None,
        config=botocore.config.Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # R2 rejects the newer default for uploads: trailers with checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": BOTO_ATTEMPTS},
        ),
    )
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-send.s3.{operation}", _without_expect)
    if is_r2:
        speak_r2(client)
    connections = Connections(
        client.meta.endpoint_url,
        most=target.threads,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        verify=bundle or True,
    )
    client.meta.events.register_last("before-send.s3", connections.carry)
    client.meta.events.register("before-call.s3", _without_redirects)
    gets = SignedGets(connections, bucket=target.bucket, region=region, credentials=credentials)
    frozen = credentials.get_frozen_credentials()
    identity = (frozen.access_key, frozen.secret_key, frozen.token)
    return Access(target, client, gets, connections, region, identity)


def _session(environ: Mapping[str, str]) -> Any:
    """boto3's session with the keys the environment names, else with what the ordinary chain finds."""
    for identity, secret, token in (
        ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_SESSION_TOKEN"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        given = [name for name in (identity, secret) if environ.get(name)]
        if len(given) == 1:
            missing = secret if given[0] == identity else identity
            raise Denied(f"no credentials: {given[0]} is set, but {missing} is not")
        if given:
            return boto3.session.Session(
                aws_access_key_id=environ[identity],
                aws_secret_access_key=environ[secret],
                aws_session_token=environ.get(token) or None,
            )
    return boto3.session.Session(profile_name=environ.get("AWS_PROFILE") or None)


def _without_expect(request: Any, **_: Any) -> None:
    """R2 does not answer `Expect: 100-continue`, and botocore would wait a second for each PUT."""
    request.headers.pop("Expect", None)


def _without_redirects(context: dict[str, Any], **_: Any) -> None:
    """Botocore would look for the region of a bucket by itself, once for each client and unseen."""
    context.setdefault("s3_redirect", {})["redirected"] = True
