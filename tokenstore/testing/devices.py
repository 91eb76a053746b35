"""The device grant (RFC 8628): codes that a person enters elsewhere. No sockets."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from tokenstore.testing.protocol import RefusedError

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words (RFC 8628 section 6.1)
_SLOWER = 5.0  # seconds


@dataclass
class Device:
    """A device that waits to be let in.

    Attributes:
        subject: Who let it in, or None.
        refused: Whether somebody said no.
        interval: Seconds that it has to leave between two questions.
        asked_at: When it last asked, in UTC epoch seconds.
    """

    client_id: str
    scope: str
    expires_at: float
    interval: float
    subject: str | None = None
    refused: bool = False
    spent: bool = False
    asked_at: float | None = None


class Devices:
    """Every device code ever issued.

    Args:
        expires_in: Seconds that a code lives.
        interval: Seconds between two questions.
    """

    def __init__(self, *, expires_in: float, interval: float) -> None:
        self._expires_in = expires_in
        self._interval = interval
        self._by_device_code: dict[str, Device] = {}
        self._by_user_code: dict[str, Device] = {}

    def begin(
        self, client_id: str, scope: str, verification_uri: str, now: float
    ) -> dict[str, Any]:
        """Return the answer of the device authorization endpoint (RFC 8628 section 3.2)."""
        device = Device(client_id, scope, now + self._expires_in, self._interval)
        device_code = secrets.token_urlsafe()
        letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
        user_code = f"{letters[:4]}-{letters[4:]}"
        self._by_device_code[device_code] = self._by_user_code[user_code] = device
        return {
            "device_code": device_code,
            "user_code": user_code,
            "verification_uri": verification_uri,
            "verification_uri_complete": f"{verification_uri}?user_code={user_code}",
            "expires_in": self._expires_in,
            "interval": self._interval,
        }

    def find(self, user_code: str, now: float) -> Device | None:
        """Return the device that shows this code, if it is still to be decided about."""
        plain = user_code.upper().replace("-", "").replace(" ", "")
        device = self._by_user_code.get(f"{plain[:4]}-{plain[4:]}")
        open_ = device is not None and device.subject is None and not device.refused
        return device if open_ and device is not None and now < device.expires_at else None

    def poll(self, client_id: str, params: dict[str, str], now: float) -> Device:
        """Return a device that was let in; refuse any other (RFC 8628 section 3.5)."""
        device = self._by_device_code.get(params.get("device_code", ""))
        if "device_code" not in params:
            raise RefusedError("invalid_request", "device_code is missing")
        if device is None or device.client_id != client_id or device.spent:
            raise RefusedError("invalid_grant", "no device code of this client")
        too_soon = device.asked_at is not None and now < device.asked_at + device.interval
        device.asked_at = now
        if now >= device.expires_at:
            raise RefusedError("expired_token", "the device code has expired")
        if too_soon:
            device.interval += _SLOWER
            raise RefusedError("slow_down", f"ask every {device.interval:g} s")
        if device.refused:
            raise RefusedError("access_denied", "the person said no")
        if device.subject is None:
            raise RefusedError("authorization_pending", "nobody has decided yet")
        device.spent = True
        return device
