"""Who is let in, as AWS tells it where R2 has nothing to tell: the region a request is signed for, its token.

Options of the server: region (the bucket's; "" = any), refuse (`redirect`: 301, or `malformed`: 400 with the
region in the body), token (the session token that counts; others are expired).
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.r2.wire import Refusal, Request


def check_admission(request: Request, options: Mapping[str, object]) -> None:
    """Raises Refusal."""
    signed = request.headers.get("authorization", "")
    if not signed:
        return
    region, scope = str(options["region"]), signed.partition("Credential=")[2].split("/")
    named = scope[2] if len(scope) > 2 else ""
    if region and named != region:
        raise _elsewhere(region, named, str(options["refuse"]))
    if options["token"] and request.headers.get("x-amz-security-token") != options["token"]:
        raise Refusal(400, "ExpiredToken", "The provided token has expired.")


def _elsewhere(region: str, named: str, how: str) -> Refusal:
    told = {"x-amz-bucket-region": region}
    if how == "redirect":
        text = "The bucket you are attempting to access must be addressed using the specified endpoint."
        return Refusal(301, "PermanentRedirect", text, headers=told)
    text = f"The authorization header is malformed; the region '{named}' is wrong; expecting '{region}'"
    told = told if how == "malformed" else {}
    return Refusal(
        400, "AuthorizationHeaderMalformed", text, headers=told, detail=f"<Region>{region}</Region>"
    )
