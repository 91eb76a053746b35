// The certified OpenID provider "oidc-provider", set up as careful operators do: a public client with
// PKCE, refresh tokens that rotate, revocation, device codes, and `iss` in the redirect (RFC 9207).
// Prints its issuer; ends when its stdin does.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package is installed where the tests' virtual environment is, not beside this file.
const require = createRequire(`${process.argv[2]}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const server = createServer();
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "app",
      application_type: "native",
      redirect_uris: ["http://127.0.0.1/callback/acme"],
      token_endpoint_auth_method: "none",
      grant_types: [
        "authorization_code",
        "refresh_token",
        "urn:ietf:params:oauth:grant-type:device_code",
      ],
      response_types: ["code"],
    },
  ],
  claims: { email: ["email"] },
  conformIdTokenClaims: false, // the address is in the id_token, as most providers have it
  features: {
    deviceFlow: { enabled: true },
    devInteractions: { enabled: true }, // its own pages to sign in on: any name, any password
    resourceIndicators: { enabled: false },
    revocation: { enabled: true },
  },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com` }),
  }),
  rotateRefreshToken: true,
});
server.on("request", provider.callback());
process.stdin.resume().on("end", () => process.exit());
console.log(issuer);
