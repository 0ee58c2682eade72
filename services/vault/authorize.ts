// An OAuth authorization from its beginning to the sealed grant. The state is 256 random bits kept nowhere but in the URL;
// the PKCE verifier lies sealed. The code is exchanged once: whoever claims the row exchanges, everybody else waits for the
// outcome and gets the same. A claim is given back only where the provider has not seen the code.
import { setTimeout as sleep } from "node:timers/promises";
import * as oauth from "oauth4webapi";
import type { Catalog } from "#libs/catalog.ts";
import { notFound, StatusError } from "#libs/errors.ts";
import { digest, randomText } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import type { Actor } from "./audit-entries.ts";
import {
  type AuthorizationRow,
  type AuthorizationSecrets,
  authorizationOwner,
  claimAuthorization,
  failAuthorization,
  failStaleAuthorization,
  getAuthorization,
  insertAuthorization,
  lockAuthorization,
  releaseAuthorization,
  succeedAuthorization,
} from "./authorizations.ts";
import { type CredentialRow, credentialOwner, getCredential } from "./credentials.ts";
import { factsOf, materialOf } from "./grants.ts";
import { fetchIdentityName } from "./identity.ts";
import { findOauthClientState, noteSecretTaken, type OauthClientState } from "./oauth-clients.ts";
import { findApp } from "./own-apps.ts";
import { persist } from "./persist.ts";
import {
  authorizationUrl,
  exchangeCode,
  isOauthApp,
  judgeRedirect,
  type ProviderContext,
  type Redirect,
} from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import { insertRevocations, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { type ReadyKey, type Secrets, sealWith } from "./secrets.ts";
import { identityDigest } from "./shared-grants.ts";
import { type CredentialSubject, storeCredential } from "./store.ts";
import type { TokenGrant, TokenOutcome } from "./token-answers.ts";

/** What authorizations need. */
export interface AuthorizerOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

/** Authorizes accounts for this process's callers. */
export interface Authorizer {
  /** Gives the page to send the browser to. */
  start(request: AuthorizationRequest): Promise<StartedAuthorization>;
  /**
   * Exchanges the code, or gives the outcome of who did. FAILED_PRECONDITION with the reason when it ended otherwise. An
   * exchange goes on when its caller leaves.
   */
  complete(redirect: Redirect, by: CompletionCaller): Promise<CompletedAuthorization>;
  /** Resolves when nothing is under way. */
  idle(): Promise<void>;
}

/** An authorization that waits for its user. */
export interface StartedAuthorization {
  readonly authorizationUrl: string;
  readonly stateDigest: Buffer;
  readonly expireTime: Date;
}

/** Who completes an authorization, and for how long they wait. */
export interface CompletionCaller {
  readonly deadlineMs: number;
  readonly actor: Actor;
}

/** What to authorize. */
export interface AuthorizationRequest extends CredentialSubject {
  readonly redirectUri: string;
  /** The app's own when empty. */
  readonly scopes: readonly string[];
  readonly fields: Readonly<Record<string, string>>;
}

/** How an authorization ended well. */
export interface CompletedAuthorization {
  readonly row: CredentialRow;
  readonly identityName: string;
}

const failureTexts: Readonly<Record<string, string>> = {
  ACCESS_DENIED: "The user did not allow the connection.",
  ACCOUNT_REVOKED: "The account was revoked meanwhile.",
  AUTHORIZATION_EXPIRED: "The authorization was begun too long ago: start again.",
  AUTHORIZATION_INTERRUPTED: "The authorization was interrupted: start again.",
  CODE_MISSING: "The provider sent neither a code nor an error.",
  CODE_REJECTED: "The provider did not accept the code.",
  ISSUER_MISMATCH: "The answer does not come from this app's provider.",
  OAUTH_CLIENT_REJECTED: "The provider refused the OAuth app: its client id or secret is wrong.",
  PROVIDER_ERROR: "The provider reported an error.",
};

/** Makes the process's authorizer. */
export function createAuthorizer(options: AuthorizerOptions): Authorizer {
  const underWay = new Set<Promise<unknown>>();
  return {
    start: (request) => startAuthorization(options, request),
    complete(redirect, by) {
      const completing: Promise<CompletedAuthorization> = completeAuthorization(options, redirect, by).finally(() =>
        underWay.delete(completing),
      );
      underWay.add(completing);
      return completing;
    },
    async idle() {
      await Promise.allSettled(underWay);
    },
  };
}

async function startAuthorization(
  options: AuthorizerOptions,
  { fields, ...asked }: AuthorizationRequest,
): Promise<StartedAuthorization> {
  const context = await contextOf(options, asked, fields);
  const { app } = context;
  const scopes = asked.scopes.length > 0 ? asked.scopes : app.oauth2.scopes;
  const state = randomText();
  const codeVerifier = oauth.generateRandomCodeVerifier();
  const url = await authorizationUrl(context, { redirectUri: asked.redirectUri, scopes, state, codeVerifier });
  const subject = { ...asked, scopes, stateDigest: digest(state) };
  const owner = authorizationOwner(subject);
  const sealed = sealWith(await options.secrets.prepare(owner), owner, 0n, { codeVerifier, fields });
  const expireTime = await insertAuthorization(options.db, subject, sealed);
  return { authorizationUrl: url, stateDigest: subject.stateDigest, expireTime };
}

async function completeAuthorization(
  options: AuthorizerOptions,
  redirect: Redirect,
  { deadlineMs, actor }: CompletionCaller,
): Promise<CompletedAuthorization> {
  const stateDigest = digest(redirect.state);
  for (;;) {
    await failStaleAuthorization(options.db, await getAuthorization(options.db, stateDigest));
    const row = await getAuthorization(options.db, stateDigest);
    if (row.state === "SUCCEEDED") return outcomeOf(options.db, row);
    if (row.state === "FAILED") throw failure(row.failureReason);
    if (row.state === "PENDING") await exchangeOnce(options, row, { redirect, actor });
    else if (Date.now() > deadlineMs) throw new StatusError("UNAVAILABLE", "AUTHORIZATION_BUSY", "Still under way.");
    else await sleep(100);
  }
}

/** Claims the row and drives it to an outcome; does nothing when another has claimed it. */
async function exchangeOnce(
  options: AuthorizerOptions,
  row: AuthorizationRow,
  { redirect, actor }: { redirect: Redirect; actor: Actor },
): Promise<void> {
  // Whatever can be missing or sealed is fetched first: from the claim on, only the provider can fail.
  const value = await options.secrets.open<AuthorizationSecrets>(authorizationOwner(row), { ...row, generation: 0n });
  const context = await contextOf(options, row, value.fields);
  const key = await options.secrets.prepare(credentialOwner(row));
  const judged = judgeRedirect(context, redirect);
  if (!(await claimAuthorization(options.db, row))) return;
  if (judged.kind === "refused") return failAuthorization(options.db, row, judged.reason);
  const { redirectUri } = row;
  const grant = { parameters: judged.parameters, redirectUri, codeVerifier: value.codeVerifier };
  const outcome = await exchangeCode(options.providers, context, grant);
  await settle(options, row, { context, key, outcome, actor });
  if (outcome.kind === "granted" || outcome.kind === "rejected") {
    await noteSecretTaken(options, context.found, outcome.refusedSecrets);
  }
}

async function settle(
  options: AuthorizerOptions,
  row: AuthorizationRow,
  { outcome, ...of }: Omit<Granted, "grant"> & { readonly outcome: TokenOutcome },
): Promise<void> {
  switch (outcome.kind) {
    case "granted":
      return keepGrant(options, row, { ...of, grant: outcome.grant });
    case "retry":
      if (!outcome.sent) {
        await releaseAuthorization(options.db, row);
        throw new StatusError("UNAVAILABLE", "PROVIDER_UNREACHABLE", "The provider cannot be reached now.");
      }
      return failAuthorization(options.db, row, "PROVIDER_ERROR");
    case "client_rejected":
      return failAuthorization(options.db, row, "OAUTH_CLIENT_REJECTED");
    case "rejected":
      return failAuthorization(options.db, row, "CODE_REJECTED");
    case "unknown":
      return failAuthorization(options.db, row, "PROVIDER_ERROR");
  }
}

interface Granted {
  readonly context: ProviderContext;
  readonly key: ReadyKey;
  readonly grant: TokenGrant;
  readonly actor: Actor;
}

async function keepGrant(options: AuthorizerOptions, row: AuthorizationRow, granted: Granted): Promise<void> {
  const identityName = await fetchIdentityName(options.providers, granted.context, granted.grant.accessToken);
  await persist(options.log, row, () => storeGrant(options, row, { ...granted, identityName }));
}

async function storeGrant(
  { db, secrets, catalog }: AuthorizerOptions,
  row: AuthorizationRow,
  { context, key, grant, actor, identityName }: Granted & { readonly identityName: string },
): Promise<void> {
  const material = materialOf(grant, context.fields);
  const digestOfIdentity = identityDigest(identityName);
  const stored = await db.transaction().execute(async (transaction) => {
    const state = await lockAuthorization(transaction, row);
    // Of an earlier attempt, whose commit was not acknowledged: nobody else ends a claim well.
    if (state === "SUCCEEDED") return true;
    if (state !== "EXCHANGING") return false;
    const facts = { ...factsOf(context.app, grant, row.scopes), identityDigest: digestOfIdentity };
    const action = "credential.connected";
    const ownApp = !catalog.has(row.appSlug);
    const isStored = await storeCredential(transaction, row, { key, material, facts, actor, action, ownApp });
    if (isStored) await succeedAuthorization(transaction, row, identityName);
    else await failAuthorization(transaction, row, "ACCOUNT_REVOKED");
    return isStored;
  });
  if (stored || context.app.oauth2.revoke === undefined) return;
  // Revoked while the user was at the provider: what was just granted must not live on there.
  const prepared = await prepareRevocation(
    secrets,
    { ...row, identityDigest: digestOfIdentity },
    { ...material, client: context.client },
  );
  await db.transaction().execute((transaction) => insertRevocations(transaction, [prepared]));
}

async function contextOf(
  options: AuthorizerOptions,
  subject: Pick<CredentialSubject, "projectId" | "oauthAppId" | "appSlug">,
  fields: Readonly<Record<string, string>>,
): Promise<ProviderContext & { readonly found: OauthClientState }> {
  const app = await findApp(options, subject);
  if (app === undefined) throw notFound("app");
  if (!isOauthApp(app)) throw new StatusError("FAILED_PRECONDITION", "APP_HAS_NO_OAUTH", "The app connects by keys.");
  const found = await findOauthClientState(options, subject);
  if (found === undefined) throw notFound("OAuth app");
  return { app, client: found.client, fields, found };
}

async function outcomeOf(db: VaultDatabase, row: AuthorizationRow): Promise<CompletedAuthorization> {
  return { row: await getCredential(db, row), identityName: row.identityName };
}

function failure(reason: string): StatusError {
  return new StatusError("FAILED_PRECONDITION", reason, failureTexts[reason] ?? "The authorization failed.");
}
