"""Device codes (RFC 8628), which a user enters on another device. No sockets."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from tokenstore.testing.protocol import OAuthError

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words (RFC 8628 section 6.1)
_SLOW_DOWN = 5.0  # seconds


@dataclass
class Device:
    """A device that waits for a user to sign in.

    Attributes:
        subject: The user who allowed access, or None.
        refused: Whether a user refused access.
        interval: Minimum seconds between two polls.
        polled_at: Time of the last poll, in UTC epoch seconds, or None.
    """

    client_id: str
    scope: str
    expires_at: float
    interval: float
    subject: str | None = None
    refused: bool = False
    used: bool = False
    polled_at: float | None = None


class Devices:
    """Every device code ever issued.

    Args:
        expires_in: Lifetime of a code in seconds.
        interval: Minimum seconds between two polls.
    """

    def __init__(self, *, expires_in: float, interval: float) -> None:
        self._expires_in = expires_in
        self._interval = interval
        self._by_device_code: dict[str, Device] = {}
        self._by_user_code: dict[str, Device] = {}

    def issue(
        self, client_id: str, scope: str, verification_uri: str, now: float
    ) -> dict[str, Any]:
        """Return a device authorization response (RFC 8628 section 3.2)."""
        device = Device(client_id, scope, now + self._expires_in, self._interval)
        device_code = secrets.token_urlsafe()
        letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
        user_code = f"{letters[:4]}-{letters[4:]}"
        self._by_device_code[device_code] = self._by_user_code[letters] = device
        return {
            "device_code": device_code,
            "user_code": user_code,
            "verification_uri": verification_uri,
            "verification_uri_complete": f"{verification_uri}?user_code={user_code}",
            "expires_in": self._expires_in,
            "interval": self._interval,
        }

    def find_pending(self, user_code: str, now: float) -> Device | None:
        """Return the device with this user code if it has not expired or been decided."""
        device = self._by_user_code.get(re.sub(r"[- ]", "", user_code).upper())
        if device is None or device.subject is not None or device.refused:
            return None
        return device if now < device.expires_at else None

    def poll(self, client_id: str, params: dict[str, str], now: float) -> Device:
        """Return a device that was allowed; refuse any other (RFC 8628 section 3.5)."""
        device = self._by_device_code.get(params.get("device_code", ""))
        if "device_code" not in params:
            raise OAuthError("invalid_request", "device_code is missing")
        if device is None or device.client_id != client_id or device.used:
            raise OAuthError("invalid_grant", "the device_code was not issued to this client")
        too_soon = device.polled_at is not None and now < device.polled_at + device.interval
        device.polled_at = now
        if now >= device.expires_at:
            raise OAuthError("expired_token", "the device code has expired")
        if too_soon:
            device.interval += _SLOW_DOWN
            raise OAuthError("slow_down", f"poll every {device.interval:g} s")
        if device.refused:
            raise OAuthError("access_denied", "the user refused access")
        if device.subject is None:
            raise OAuthError("authorization_pending", "the user has not decided yet")
        device.used = True
        return device
