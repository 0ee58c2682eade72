// The authorization server of the sandbox: oidc-provider set up as a strict third party (PKCE S256 always, a new refresh
// token at each refresh, reuse of an old one revokes the grant), and the one page on which a person allows or denies.
import type { IncomingMessage, ServerResponse } from "node:http";
import { type AccessToken, type Context, errors, Provider } from "oidc-provider";
import { readBody } from "./sandbox-api.ts";
import type { SandboxStore } from "./sandbox-store.ts";

const daySeconds = 86_400;
const scopes = ["openid", "offline_access", "profile", "read", "write"] as const;
const grantTypes = ["authorization_code", "refresh_token"] as const;

/** What every token and code begins with, as many providers have it: so that one that leaks is found. */
const tokenPrefix = "sandbox-token-";

/** What has been asked of the provider since its start: numbers only. */
export interface SandboxStats {
  /** By grant type, then by outcome: `success` or the OAuth error code. */
  readonly tokenRequests: Record<string, Record<string, number>>;
  revocationRequests: number;
  /** Grants that ended because a refresh token came a second time. */
  familiesRevokedByReuse: number;
}

export interface SandboxOauthOptions {
  readonly issuer: string;
  readonly clientId: string;
  readonly clientSecret: string;
  readonly redirectUris: readonly string[];
  readonly accessTokenSeconds: () => number;
  readonly store: SandboxStore;
  readonly stats: SandboxStats;
}

export interface SandboxOauth {
  handleOauth(request: IncomingMessage, response: ServerResponse): Promise<void>;
  handleInteraction(request: IncomingMessage, response: ServerResponse): Promise<void>;
  /** Gives the person behind an access token that is good at this moment. */
  findUser(accessToken: string): Promise<SandboxUser | undefined>;
}

/** Whoever types a name is that person: the subject is the name in another spelling, so nothing has to be stored. */
export interface SandboxUser {
  readonly sub: string;
  readonly name: string;
}

function userByName(text: string): SandboxUser | undefined {
  const name = text.trim();
  if (!/^[\p{L}\p{N}][\p{L}\p{N} ._@'-]{0,59}$/u.test(name)) return undefined;
  return { sub: `user_${Buffer.from(name).toString("base64url")}`, name };
}

function userBySubject(sub: string): SandboxUser | undefined {
  const user = userByName(Buffer.from(sub.slice("user_".length), "base64url").toString());
  return user?.sub === sub ? user : undefined;
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

function page(title: string, content: string): string {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escapeHtml(title)}</title>
<style>body{font:16px/1.5 system-ui;max-width:26rem;margin:12vh auto;padding:0 1rem}input,button{font:inherit;padding:.4rem .8rem}</style>
<h1>${escapeHtml(title)}</h1>
${content}
</html>
`;
}

function consentPage(clientId: string, requestedScope: string): string {
  return page(
    "Sandbox provider",
    `<p><strong>${escapeHtml(clientId)}</strong> asks for: ${escapeHtml(requestedScope)}</p>
<form method="post">
<p><label>Sign in to the sandbox as: <input name="name" value="Sandbox User" maxlength="60" autocomplete="off"></label></p>
<p><button name="decision" value="allow">Allow</button> <button name="decision" value="deny">Deny</button></p>
</form>`,
  );
}

function answerPage(response: ServerResponse, status: number, html: string): void {
  response.writeHead(status, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" }).end(html);
}

// Each authorization request is a new sign-in: with a remembered session a second account would silently be the first.
function forgetSession(request: IncomingMessage): void {
  const cookies = (request.headers.cookie ?? "").split("; ").filter((cookie) => !/^_session(\.sig)?=/.test(cookie));
  request.headers.cookie = cookies.join("; ");
}

/** Sets up the authorization server for one confidential client (client_secret_basic). */
export function createSandboxOauth(options: SandboxOauthOptions): SandboxOauth {
  const { issuer, clientId, store, stats } = options;
  const provider = new Provider(issuer, {
    adapter: (model: string) => store.adapter(model),
    clients: [
      {
        client_id: clientId,
        client_secret: options.clientSecret,
        redirect_uris: [...options.redirectUris],
        grant_types: [...grantTypes],
        response_types: ["code"],
        token_endpoint_auth_method: "client_secret_basic",
      },
    ],
    scopes: [...scopes],
    claims: { openid: ["sub"], profile: ["name"] },
    findAccount: (_context: Context, sub: string) => {
      const user = userBySubject(sub);
      return user && { accountId: sub, claims: async () => user };
    },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    // Always, as most providers do: oidc-provider's default asks for offline_access together with prompt=consent.
    issueRefreshToken: () => true,
    expiresWithSession: () => false,
    // One grant for each consent: accounts of one person live and end apart.
    loadExistingGrant: ({ oidc }: Context) => {
      const grantId = oidc.result?.consent?.grantId;
      return grantId === undefined ? undefined : oidc.provider.Grant.find(grantId);
    },
    interactions: { url: (_context: Context, { uid }: { uid: string }) => `/interaction/${uid}` },
    features: {
      devInteractions: { enabled: false },
      rpInitiatedLogout: { enabled: false },
      revocation: {
        enabled: true,
        allowedPolicy: (_context: Context, client: { clientId: string }, token: { clientId: string }) =>
          client.clientId === token.clientId,
      },
    },
    clientBasedCORS: () => false,
    cookies: { keys: store.keys.cookieKeys },
    jwks: store.keys.jwks,
    renderError: (context: Context, out: Readonly<Record<string, string>>) => {
      context.type = "html";
      context.body = page("The request was refused", `<p>${escapeHtml(Object.values(out).join(": "))}</p>`);
    },
    ttl: {
      AccessToken: () => options.accessTokenSeconds(),
      AuthorizationCode: () => 60,
      IdToken: () => 3600,
      Interaction: () => 3600,
      Session: () => 3600,
      RefreshToken: () => 90 * daySeconds,
      Grant: () => 3650 * daySeconds,
    },
  });

  for (const { prototype } of [provider.AccessToken, provider.RefreshToken, provider.AuthorizationCode]) {
    const generate = prototype.generateTokenId;
    prototype.generateTokenId = function () {
      return tokenPrefix + generate.call(this);
    };
  }

  function countTokenRequest({ oidc }: Context, outcome: string): void {
    const grantType = grantTypes.find((known) => known === oidc.params?.grant_type) ?? "other";
    const outcomes = stats.tokenRequests[grantType] ?? {};
    stats.tokenRequests[grantType] = { ...outcomes, [outcome]: (outcomes[outcome] ?? 0) + 1 };
  }
  provider.on("grant.success", (context) => countTokenRequest(context, "success"));
  provider.on("grant.error", (context, error) => countTokenRequest(context, error.message));
  provider.on("grant.revoked", ({ oidc }) => {
    if (oidc.route === "token" && oidc.params?.grant_type === "refresh_token") stats.familiesRevokedByReuse += 1;
  });
  provider.on("server_error", (context, error) => {
    if (context.oidc.route === "token") countTokenRequest(context, "server_error");
    console.error("sandbox provider:", error);
  });

  const callback = provider.callback();
  return {
    async handleOauth(request, response) {
      const path = request.url?.split("?")[0] ?? "/";
      if (path === "/token/revocation") stats.revocationRequests += 1;
      if (path === "/auth" || path.startsWith("/auth/")) forgetSession(request);
      await callback(request, response);
    },

    async handleInteraction(request, response) {
      try {
        const { params } = await provider.interactionDetails(request, response);
        const scope = params.scope ?? "";
        if (request.method !== "POST") return answerPage(response, 200, consentPage(clientId, scope));
        const form = new URLSearchParams((await readBody(request, 4096)).toString());
        const decision = form.get("decision");
        if (decision === "deny") {
          const denial = { error: "access_denied", error_description: "the person denied the request" };
          return await provider.interactionFinished(request, response, denial, { mergeWithLastSubmission: false });
        }
        if (decision !== "allow") return answerPage(response, 400, page("decision is neither allow nor deny", ""));
        const user = userByName(form.get("name") ?? "");
        if (user === undefined) return answerPage(response, 400, page("name is not 1 to 60 letters and digits", ""));
        const grant = new provider.Grant({ accountId: user.sub, clientId });
        grant.addOIDCScope(scope);
        const result = { login: { accountId: user.sub }, consent: { grantId: await grant.save() } };
        await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
      } catch (error) {
        if (!(error instanceof errors.SessionNotFound)) throw error;
        answerPage(response, 400, page("This sign-in is over or was begun in another browser", ""));
      }
    },

    async findUser(accessToken) {
      const token: AccessToken | undefined = await provider.AccessToken.find(accessToken);
      // The grant too: when it ends during a refresh, that refresh still stores its tokens a moment later.
      const grant = token && (await provider.Grant.find(token.grantId));
      return token && grant && userBySubject(token.accountId);
    },
  };
}
