// A vault for tests in which the vault must fail, or must be seen: it answers as the contract says, keeps no secret beyond
// the calls it has recorded, and throws what it is told to.
import { createHmac, randomBytes } from "node:crypto";
import { notFound, StatusError } from "#libs/errors.ts";
import { digest, randomText } from "#libs/ids.ts";
import type { Call, Handlers } from "#libs/rpc.ts";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { CompleteAuthorizationRequest, StoreCredentialRequest } from "#proto/deputy/vault/v1/credentials.ts";
import { Credential } from "#proto/deputy/vault/v1/credentials.ts";
import { startStandIn } from "../support/stand-in-service.ts";

/** What the vault was asked. */
export interface RecordedCall {
  readonly method: string;
  readonly request: object;
  readonly call: Call;
}

type Answers = Pick<
  Handlers<typeof CredentialVaultDefinition>,
  | "storeCredential"
  | "getCredential"
  | "startAuthorization"
  | "completeAuthorization"
  | "destroyCredentials"
  | "putOauthClient"
  | "eraseUser"
  | "createWebhookKey"
  | "signWebhook"
  | "destroyWebhookKey"
  | "destroyOauthClient"
  | "putApp"
  | "destroyApp"
>;

/** Starts it on a free port. */
export async function startRecordingVault() {
  const calls: RecordedCall[] = [];
  const faults: { method: string; error: unknown }[] = [];
  const hooks: { before?: (method: string) => Promise<void> } = {};
  const destroyed = new Map<string, Date>();
  const webhookKeys = new Map<string, string[]>();

  const usual: Answers = {
    storeCredential: async ({ accountId, material }: StoreCredentialRequest) => {
      const scopes = material?.$case === "grant" ? material.value.scopes : [];
      return { credential: Credential.fromPartial({ accountId, scopes }) };
    },
    getCredential: async ({ accountId }) => ({ credential: Credential.fromPartial({ accountId }) }),
    startAuthorization: async () => {
      const state = randomText();
      const expireTime = new Date(Date.now() + 600_000);
      return { authorizationUrl: `https://provider.test/auth?state=${state}`, stateDigest: digest(state), expireTime };
    },
    completeAuthorization: async ({ error }: CompleteAuthorizationRequest) => {
      if (error !== "") throw new StatusError("FAILED_PRECONDITION", "AUTHORIZATION_DENIED", "The user said no.");
      return { credential: Credential.fromPartial({ scopes: ["read", "write"] }), identityName: "ann@provider.test" };
    },
    destroyCredentials: async ({ accountIds }) => ({
      receipts: accountIds.map((accountId) => {
        const destroyTime = destroyed.get(accountId) ?? new Date();
        destroyed.set(accountId, destroyTime);
        const whose = {
          accountId,
          externalUserId: "from-the-vault",
          appSlug: "from-the-vault",
          jws: `signed-${accountId}`,
        };
        return { ...whose, destroyTime, providerRevocation: ProviderRevocation.PENDING };
      }),
    }),
    putOauthClient: async () => ({}),
    eraseUser: async () => ({ destroyed: 0 }),
    createWebhookKey: async ({ webhookId }) => {
      const signingKey = `whsec_${randomBytes(32).toString("base64")}`;
      webhookKeys.set(webhookId, [signingKey, ...(webhookKeys.get(webhookId) ?? [])].slice(0, 2));
      return { signingKey };
    },
    signWebhook: async ({ webhookId, messageId, timestamp, body }) => {
      const sign = (key: string) =>
        createHmac("sha256", Buffer.from(key.slice(6), "base64"))
          .update(`${messageId}.${timestamp}.`)
          .update(body)
          .digest("base64");
      const keys = webhookKeys.get(webhookId);
      if (keys === undefined) throw notFound("webhook key");
      return { signature: keys.map((key) => `v1,${sign(key)}`).join(" ") };
    },
    destroyWebhookKey: async ({ webhookId }) => {
      webhookKeys.delete(webhookId);
      return {};
    },
    destroyOauthClient: async () => ({}),
    putApp: async () => ({}),
    destroyApp: async () => ({}),
  };

  const answers: { -readonly [Method in keyof Answers]: Answers[Method] } = { ...usual };
  const record = (method: keyof Answers) => async (request: object, call: Call) => {
    calls.push({ method, request, call });
    await hooks.before?.(method);
    const fault = faults.findIndex((entry) => entry.method === method);
    if (fault >= 0) throw faults.splice(fault, 1)[0]?.error;
    return answers[method](request as never, call);
  };
  const methods = Object.keys(usual) as (keyof Answers)[];
  const server = await startStandIn({
    definition: CredentialVaultDefinition,
    service: "vault",
    handlers: Object.fromEntries(methods.map((method) => [method, record(method)])),
    callers: Object.fromEntries(methods.map((method) => [method, [{ service: "account" }]])),
  });
  return {
    address: `127.0.0.1:${server.internalPort}`,
    calls,
    destroyed,
    webhookKeys,
    hooks,
    /** What it answers; may be replaced until `restore`. */
    answers,
    restore: () => Object.assign(answers, usual),
    /** Calls of one method, oldest first. */
    callsOf: (method: string) => calls.filter((entry) => entry.method === method),
    /** Makes the next call of the method fail, once for each time this is called. */
    failNext: (method: string, error: unknown = new StatusError("UNAVAILABLE", "DOWN", "The vault is down.")) => {
      faults.push({ method, error });
    },
    stop: () => server.drain(1_000),
  };
}
