"""What the server says: XML as S3 has it, and headers of objects."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.r2.state import Stored
from tests.r2.wire import Answer, Refusal, Request, http_date

META = "x-amz-meta-"
_XML = '<?xml version="1.0" encoding="UTF-8"?>'


def headers_of(stored: Stored) -> dict[str, str]:
    """Those of a GET."""
    told = {"ETag": f'"{stored.etag}"', "Last-Modified": http_date(stored.modified), "Accept-Ranges": "bytes"}
    told |= {name.title(): value for name, value in stored.headers.items()}
    return told | {META + name: value for name, value in stored.metadata.items()}


def error(refusal: Refusal, request: Request) -> Answer:
    """A refusal as S3 tells it; R2's number stands in the message."""
    number = f" ({refusal.number})" if refusal.number else ""
    told = f"<Code>{refusal.code}</Code><Message>{escape(str(refusal))}{number}</Message>{refusal.detail}"
    answer = xml(f"<Error>{told}<Resource>{escape(request.raw_key)}</Resource></Error>")
    return replace(answer, status=refusal.status, headers={**answer.headers, **refusal.headers})


def xml(told: str) -> Answer:
    """An answer."""
    return Answer(headers={"Content-Type": "application/xml"}, body=(_XML + told).encode())


def text(text: str, coded: bool) -> str:
    """A key, coded as it was asked for."""
    return quote(text, safe="/") if coded else escape(text)


def listed(stored: Stored, key: str, coded: bool) -> str:
    """An object in a listing."""
    return (
        f"<Key>{text(key, coded)}</Key><Size>{stored.size}</Size>{result(stored.etag, stored.modified)}"
        "<StorageClass>STANDARD</StorageClass>"
    )


def result(etag: str, modified: float) -> str:
    """Etag and time."""
    return f"<ETag>&quot;{etag}&quot;</ETag><LastModified>{iso(modified)}</LastModified>"


def iso(moment: float) -> str:
    """A time in XML."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))


def elements(told: bytes, name: str) -> list[ElementTree.Element]:
    """The elements of a name. Raises Refusal for what is no XML."""
    try:
        root = ElementTree.fromstring(told)
    except ElementTree.ParseError:
        raise Refusal(400, "MalformedXML", "The XML you provided was not well-formed.", 10040) from None
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def child(element: ElementTree.Element, name: str) -> str:
    """The text of a child."""
    return next((child.text or "" for child in element if child.tag.rpartition("}")[2] == name), "")


def dumped(told: object) -> Answer:
    """JSON, for the server's own questions."""
    return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(told).encode())
