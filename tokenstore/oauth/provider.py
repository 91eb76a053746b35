"""A provider: an authorization server, and the client that is registered there."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from types import NoneType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, urlsplit

from tokenstore.errors import ProviderConfigurationError
from tokenstore.models.tokens import fingerprint
from tokenstore.oauth.addresses import foreign_network, is_loopback
from tokenstore.redaction import protect

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

AUTH_METHODS = (
    "client_secret_basic",
    "client_secret_post",
    "none",
    "private_key_jwt",
    "client_secret_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
)
SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
GRANT_TYPES = ("refresh_token", "client_credentials", JWT_BEARER)
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
KEY_ALGORITHMS = (*RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA")
_WITH_SECRET = {"client_secret_basic", "client_secret_post", "client_secret_jwt"}
_WITH_CERTIFICATE = {"tls_client_auth", "self_signed_tls_client_auth"}


@dataclass(frozen=True)
class Provider:
    """An authorization server and this application's registration with it.

    The names are those of RFC 8414 (the server) and RFC 7591 (the client). Creating a provider
    checks nothing; using one that is misconfigured raises a `ProviderConfigurationError` before
    any request is sent.

    Attributes:
        name: The name that accounts refer to.
        token_endpoint: URL that refreshes tokens: https, or http on loopback. None takes it from
            the issuer's metadata or the service account.
        client_id: This application's id at the provider. None takes it from the service account.
        client_secret: Its secret, or None for a public client.
        token_endpoint_auth_method: ``client_secret_basic``, ``client_secret_post``, ``none``;
            ``private_key_jwt`` or ``client_secret_jwt``, a signed assertion (RFC 7523 section 2.2);
            ``tls_client_auth`` or ``self_signed_tls_client_auth``, a certificate (RFC 8705).
            Defaults to post if there is a secret, else none.
        scope: Space-separated scopes to request when signing in and refreshing; None sends no
            ``scope`` with a refresh.
        authorization_endpoint: URL of the sign-in page.
        device_authorization_endpoint: URL of the device grant (RFC 8628).
        revocation_endpoint: URL that revokes tokens (RFC 7009).
        redirect_uri: Where the browser returns after a sign-in: http on loopback (RFC 8252
            section 7.3), as registered with the provider. Without a port, a free one is used.
            Defaults to ``http://127.0.0.1/callback/NAME``, which no other provider has (section
            8.10).
        sign_in_scope: Scopes to request at every sign-in in addition to `scope`, or None.
        authorization_params: Additional parameters of the sign-in page's URL.
        authorization_response_iss_parameter_supported: Whether the provider always identifies
            itself in the authorization response (RFC 9207). If so, a response without ``iss`` is
            refused.
        extra_params: Additional parameters of the token request.
        default_expires_in: Seconds to assume for a response without a usable ``expires_in``, and
            for tokens that are saved or imported without an expiry; ``math.inf`` for tokens that do
            not expire.
        body_format: ``form``, as RFC 6749 requires, or ``json`` for providers that require JSON.
        basic_form_encode: Whether id and secret are form-encoded in the Basic header, as RFC 6749
            section 2.3.1 requires. Some providers do not decode them.
        refresh_token_lifetime: Seconds that a refresh token is valid after it was obtained, for
            providers that do not report it; None if unlimited.
        refresh_token_idle: Seconds that an unused refresh token is valid; None if unlimited.
        max_concurrency: How many accounts a bulk refresh refreshes concurrently at this provider.
            Defaults to no limit.
        issuer: URL whose ``.well-known/openid-configuration`` fills the endpoints that are None.
        response_path: Where in a response the token set is, as names with dots between them.
            Defaults to its top or one level down.
        replay_window: Seconds within which the provider accepts the same refresh token once more;
            a request that got no response is then repeated once. None if it never does.
        refresh_token_rotates: Whether a refresh gives a new refresh token and ends the old one;
            None if unknown, which is treated like True.
        scope_separator: What separates scopes in requests to this provider: a space, as RFC 6749
            section 3.3 requires, or a comma.
        client_id_parameter: The name of the parameter that RFC 6749 calls ``client_id``.
        token_origins: Further origins, such as ``https://login.example.com``, under which this
            provider issued tokens before: tokens whose ``token_uri`` has another one are not sent
            to it.
        resource_parameter: The name of the request's parameter for what a further access token is
            for: ``resource`` (RFC 8707), or ``audience`` at some providers.
        failures: How this provider says that a refresh failed: mappings of ``status``, ``error``
            (a code), ``contains`` (a part of any of its texts) and ``means``, which is
            ``reauthorization``, ``transient`` or ``client``. The first that matches decides;
            after them come general rules.
        private_key_file: PEM file of the private key that signs assertions. Only its owner may be
            able to read it. It is read when it is used.
        private_key_env: Environment variable that contains that key, instead of a file.
        key_id: The key's id at the provider (``kid``), or None.
        signing_alg: Algorithm of the signature (RFC 7518). Defaults to RS256 for an RSA key, ES256,
            ES384 or ES512 by an elliptic curve, EdDSA for an Ed25519 key, and HS256 for
            ``client_secret_jwt``.
        assertion_audience: Audience of assertions: ``issuer`` for the issuer's URL, or a URL.
            Defaults to the token endpoint's URL.
        certificate_file: PEM file of the client's certificate, with its chain. It is presented to
            this provider's token, revocation and device endpoints only.
        certificate_key_file: PEM file of the certificate's private key. Only its owner may be able
            to read it. Defaults to `certificate_file`.
        grant_type: How access tokens are obtained: ``refresh_token``; or, for accounts that belong
            to no user and need no sign-in, ``client_credentials`` (RFC 6749 section 4.4) or
            ``urn:ietf:params:oauth:grant-type:jwt-bearer``, an assertion that is signed with the
            private key (RFC 7523 section 2.1).
        assertion_subject: Subject of that assertion (``sub``); an empty string leaves it out,
            which means the service account itself at Google. Defaults to the account's name.
        assertion_claims: Additional claims of that assertion. They replace ``iss``, ``sub`` and
            ``aud``.
        service_account_file: JSON key file of a Google service account. Only its owner may be able
            to read it. It supplies the client, the private key and the token endpoint.
    """

    name: str
    token_endpoint: str | None
    client_id: str | None
    _: KW_ONLY
    client_secret: str | None = field(default=None, repr=False)
    token_endpoint_auth_method: str | None = None
    scope: str | None = None
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    redirect_uri: str | None = None
    sign_in_scope: str | None = None
    authorization_params: Mapping[str, str] = field(default_factory=dict)
    authorization_response_iss_parameter_supported: bool = False
    extra_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    default_expires_in: float = 3600.0
    body_format: str = "form"
    basic_form_encode: bool = True
    refresh_token_lifetime: float | None = None
    refresh_token_idle: float | None = None
    max_concurrency: int | None = None
    issuer: str | None = None
    response_path: str | None = None
    replay_window: float | None = None
    refresh_token_rotates: bool | None = None
    scope_separator: str = " "
    client_id_parameter: str = "client_id"
    token_origins: Sequence[str] = ()
    resource_parameter: str = "resource"
    failures: Sequence[Mapping[str, Any]] = ()
    private_key_file: str | os.PathLike[str] | None = None
    private_key_env: str | None = None
    key_id: str | None = None
    signing_alg: str | None = None
    assertion_audience: str | None = None
    certificate_file: str | os.PathLike[str] | None = None
    certificate_key_file: str | os.PathLike[str] | None = None
    grant_type: str = "refresh_token"
    assertion_subject: str | None = None
    assertion_claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    service_account_file: str | os.PathLike[str] | None = None

    @property
    def is_unattended(self) -> bool:
        """Whether its accounts belong to no user: the client obtains tokens by itself."""
        return self.grant_type != "refresh_token"

    @property
    def auth_method(self) -> str:
        """How the client authenticates: as configured, else by its secret if it has one."""
        if self.token_endpoint_auth_method is not None:
            return self.token_endpoint_auth_method
        return "none" if self.client_secret is None else "client_secret_post"

    @property
    def basic_credentials(self) -> str:
        """Id and secret for a Basic header (secret!), form-encoded unless configured otherwise."""
        pair = [self.client_id or "", self.client_secret or ""]
        if self.basic_form_encode:
            pair = [quote_plus(part) for part in pair]
        return base64.b64encode(":".join(pair).encode()).decode()

    @property
    def callback_uri(self) -> str:
        """The redirect URI, without the port unless one is configured."""
        if self.redirect_uri is not None:
            return self.redirect_uri
        return f"http://127.0.0.1/callback/{quote(self.name, safe='')}"

    def joined(self, scope: str) -> str:
        """Return scopes, separated by spaces, as a request to this provider contains them."""
        return self.scope_separator.join(scope.split())

    @property
    def client(self) -> str:
        """What a recorded failure applies to: the client, the endpoint, and how they are used.

        The last part changes with the settings, so that corrected ones are tried at once.
        """
        settings = (
            self.client_secret,
            self.auth_method,
            self.scope,
            sorted(self.extra_params.items()),
            self.body_format,
            # Only those that are set: failures stay known when a version adds a setting.
            *self._later_settings(),
        )
        digest = fingerprint(repr(settings))[:8]
        return f"{self.client_id} {self.token_endpoint or self.issuer} {digest}"

    def _later_settings(self) -> Iterator[tuple[str, str]]:
        for name, default in _LATER_SETTINGS.items():
            value = getattr(self, name)
            if value != default:
                yield name, str(value)
        if self.assertion_claims:
            yield "assertion_claims", str(sorted(self.assertion_claims.items()))

    def require_usable(self) -> None:
        """Raise a `ProviderConfigurationError` if no request could be sent."""
        for problem in (
            *self._client_problems(),
            *self._endpoint_problems(),
            *self._value_problems(),
        ):
            raise self.configuration_error(problem)

    def _client_problems(self) -> Iterator[str]:
        client_id: object = self.client_id
        if not isinstance(client_id, (str, NoneType)) or not (
            client_id or self.service_account_file
        ):
            yield "has no client_id"
        if self.auth_method not in AUTH_METHODS:
            supported = ", ".join(AUTH_METHODS)
            yield f"has an unknown token_endpoint_auth_method; use one of {supported}"
        if self.auth_method in _WITH_SECRET and not self.client_secret:
            yield f"has no client_secret, which {self.auth_method} requires"
        if self.auth_method in _WITH_CERTIFICATE and not self.certificate_file:
            yield f"has no certificate_file, which {self.auth_method} requires"
        yield from self._key_problems()
        yield from self._grant_problems()

    def _key_problems(self) -> Iterator[str]:
        keys = [name for name in _KEY_SOURCES if getattr(self, name)]
        if len(keys) > 1:
            yield f"has both {' and '.join(keys)}; set one of them"
        if self.auth_method == "private_key_jwt" and not keys:
            yield "has no private_key_file or private_key_env, which private_key_jwt requires"
        if self.certificate_key_file and not self.certificate_file:
            yield "has a certificate_key_file without a certificate_file"
        usable = KEY_ALGORITHMS if keys else ()
        if self.auth_method == "client_secret_jwt":
            usable = (*usable, *SECRET_ALGORITHMS)
        if self.signing_alg is not None and self.signing_alg not in usable:
            known = ", ".join(usable) or "none: nothing is signed"
            yield f"has an unknown signing_alg; use one of {known}"

    def _grant_problems(self) -> Iterator[str]:
        if self.grant_type not in GRANT_TYPES:
            yield f"has an unknown grant_type; use one of {', '.join(GRANT_TYPES)}"
        if self.grant_type == "client_credentials" and self.auth_method == "none":
            yield (
                "has no client authentication, which grant_type client_credentials requires; set "
                "client_secret or token_endpoint_auth_method"
            )
        if self.grant_type == JWT_BEARER and not any(getattr(self, n) for n in _KEY_SOURCES):
            yield f"has no {' or '.join(_KEY_SOURCES)}, which its grant_type requires"
        if self.grant_type != JWT_BEARER and self.service_account_file:
            yield f"has a service_account_file, which requires grant_type {JWT_BEARER}"
        claims: object = self.assertion_claims
        if not isinstance(claims, Mapping) or claims.keys() & {"iat", "exp", "jti"}:
            yield "has invalid assertion_claims: iat, exp and jti are different for each assertion"

    def _endpoint_problems(self) -> Iterator[str]:
        if not (self.token_endpoint or self.issuer or self.service_account_file):
            yield "has neither a token_endpoint nor an issuer"
        for kind in ("token_endpoint", "issuer"):
            url = getattr(self, kind)
            if url and (problem := _url_problem(url)):
                yield f"has an invalid {kind}: {problem}"
        if self.assertion_audience == "issuer" and not self.issuer:
            yield "has no issuer, which its assertion_audience names"

    def _value_problems(self) -> Iterator[str]:
        if self.body_format not in {"form", "json"}:
            yield "has an unknown body_format; use form or json"
        if not self.resource_parameter or not isinstance(self.resource_parameter, str):
            yield "has an invalid resource_parameter: write the parameter's name, such as audience"
        for failure in self.failures:
            if problem := _failure_problem(failure):
                yield f"has an invalid entry in failures: {problem}"
        path: object = self.response_path
        if path is not None and not isinstance(path, str):
            yield "has an invalid response_path: write names with dots between them"
        for name in (
            "default_expires_in",
            "refresh_token_lifetime",
            "refresh_token_idle",
            "replay_window",
        ):
            seconds = getattr(self, name)
            if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
                yield f"has an invalid {name}: it must be greater than 0"
        if self.max_concurrency is not None and self.max_concurrency < 1:
            yield "has an invalid max_concurrency: it must be 1 or more"

    def with_metadata(self, metadata: Mapping[str, Any]) -> Provider:
        """Return this provider with its missing endpoints taken from *metadata* (RFC 8414).

        Raises:
            ProviderConfigurationError: The metadata is of another issuer, lacks an endpoint, or
                names one on this machine or the local network.
        """
        if metadata.get("issuer") != self.issuer:
            raise self.configuration_error(
                "cannot be used: metadata issuer does not match the configured issuer"
            )
        if self.certificate_file and isinstance(metadata.get(_MTLS_ALIASES), Mapping):
            metadata = {**metadata, **metadata[_MTLS_ALIASES]}  # RFC 8705 section 5
        missing: dict[str, Any] = {
            name: metadata[name]
            for name in _ENDPOINTS
            if getattr(self, name) is None and isinstance(metadata.get(name), str)
        }
        self.require_public(missing, resolve=False)
        if metadata.get(_ISS_SUPPORTED) is True:
            missing[_ISS_SUPPORTED] = True
        complete = replace(self, **missing)
        if not complete.token_endpoint:
            raise self.configuration_error("has an issuer whose metadata has no token_endpoint")
        complete.require_usable()
        return complete

    def require_public(self, metadata: Mapping[str, Any], *, resolve: bool) -> None:
        """Refuse metadata that leads from the internet to this machine or the local network.

        Args:
            metadata: The metadata of the issuer.
            resolve: Whether to look host names up.

        Raises:
            ProviderConfigurationError: An endpoint that would be used is there.
        """
        seen = set()
        for name in _ENDPOINTS:
            url = metadata.get(name)
            if getattr(self, name) is not None or not isinstance(url, str):
                continue
            found = origin(url)
            if found in seen:
                continue
            seen.add(found)
            network = foreign_network(self.issuer or "", url, resolve=resolve)
            if network is not None:
                raise self.configuration_error(
                    f"cannot be used: the metadata of its issuer name a {name} with a {network} "
                    f"address; set {name} if that is intended"
                )

    def endpoint(self, kind: str) -> str:
        """Return the URL of an endpoint to send a request to.

        Args:
            kind: The endpoint's name in RFC 8414.

        Raises:
            ProviderConfigurationError: The provider has no such endpoint, or its URL is invalid.
        """
        url = getattr(self, kind)
        if not url or not isinstance(url, str):
            raise self.configuration_error(f"has no {kind}")
        if problem := _url_problem(url):
            raise self.configuration_error(f"has an invalid {kind}: {problem}")
        return url

    def configuration_error(self, problem: str) -> ProviderConfigurationError:
        """Return the error for a problem with this provider's configuration."""
        return ProviderConfigurationError(f"provider {self.name!r} {problem}", provider=self.name)


_KEY_SOURCES = ("private_key_file", "private_key_env", "service_account_file")
_LATER_SETTINGS = {
    **dict.fromkeys((*_KEY_SOURCES, "key_id", "signing_alg", "assertion_audience")),
    **dict.fromkeys(("certificate_file", "certificate_key_file", "assertion_subject")),
    "grant_type": "refresh_token",
    "resource_parameter": "resource",
    "scope_separator": " ",
    "client_id_parameter": "client_id",
}
_MTLS_ALIASES = "mtls_endpoint_aliases"
_ISS_SUPPORTED = "authorization_response_iss_parameter_supported"
_ENDPOINTS = tuple(f.name for f in fields(Provider) if f.name.endswith("_endpoint"))


def _failure_problem(failure: object) -> str | None:  # noqa: PLR0911 - one for each problem
    """Return why an entry of `Provider.failures` cannot be used, or None if it can."""
    if not isinstance(failure, Mapping):
        return f"expected a table, got {type(failure).__name__}"
    unknown = failure.keys() - {"status", "error", "contains", "means"}
    if unknown:
        return f"unknown key {min(unknown)!r}"
    if failure.get("means") not in ("reauthorization", "transient", "client"):
        return "means must be reauthorization, transient or client"
    if not failure.keys() & {"status", "error", "contains"}:
        return "it needs a status, an error or contains"
    if type(failure.get("status", 0)) is not int:
        return "status must be a number"
    if not all(isinstance(failure.get(name, ""), str) for name in ("error", "contains")):
        return "error and contains must be strings"
    return None


def _url_problem(url: str) -> str | None:
    """Return why secrets must not be sent to *url*, or None if they may."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "it is not a URL"
    if not host or parts.scheme not in {"https", "http"} or not url.isprintable() or " " in url:
        return "it is not an https URL"
    if parts.scheme == "http" and not is_loopback(host):
        return "it is not https; http is allowed only on loopback"
    if parts.username is not None or parts.password is not None:
        return "it contains a user name or password"
    if parts.fragment:
        return "it contains a fragment (#…)"
    return None


def origin(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of *url* (RFC 6454 section 4), or None if it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


protect(__name__)
