// A project with one of everything that a request can name, and what stands for things that are not there.
import { newId, randomText } from "#libs/ids.ts";
import type { TokenKeys } from "../../services/account/token-keys.ts";
import { type Account, binding, call, development } from "./harness.ts";

/** What requests name. */
export interface Things {
  readonly user: string;
  readonly accountId: string;
  readonly connectionId: string;
  readonly verifier: string;
  readonly state: string;
  readonly connectToken: string;
  readonly oauthAppId: string;
  readonly appOverrideId: string;
  readonly ownApp: string;
  readonly clientId: string;
  readonly clientSecret: string;
  readonly eventId: string;
}

export type Actor = { readonly member_id: string; readonly role: string };

export const plainMember: Actor = { member_id: "eve", role: "member" };
export const admin: Actor = { member_id: "ada", role: "admin" };
const owner: Actor = { member_id: "mia", role: "member" };

/** An access token of a project. */
export async function tokenOf(
  { tokenKeys, now }: { readonly tokenKeys: Pick<TokenKeys, "sign">; readonly now: () => number },
  projectId: string,
  { scope = "*", actor }: { readonly scope?: string; readonly actor?: Actor | undefined } = {},
): Promise<string> {
  const claims = { sub: "cli_backend", project_id: projectId, scope, ...(actor && { actor }) };
  return (await tokenKeys.sign(claims, now(), now() + 3_600_000)).token;
}

/** Names that have the form of what the project has, and nothing behind them. */
export function absentThings(): Things {
  return {
    ...{ user: "nobody", accountId: newId("apn"), connectionId: newId("con"), verifier: randomText() },
    ...{ state: randomText(), connectToken: `ctok_${"0".repeat(32)}`, oauthAppId: newId("oa") },
    ...{ appOverrideId: newId("aov"), ownApp: "absent_app", clientId: newId("cli"), clientSecret: randomText() },
    eventId: newId("evt"),
  };
}

export type World = Awaited<ReturnType<typeof newWorld>>;

/** Makes the project. `shared` are things of the workspace, `hidden` those of the member mia alone. */
export async function newWorld(account: Account) {
  const { operator, api, gateway } = account;
  const project = async () => (await operator.createProject({ name: "Acme" }, call())).project?.id ?? "";
  const [projectId, otherProjectId] = [await project(), await project()];
  const token = await tokenOf(account, projectId);
  const whose = { environment: development, externalUserId: "ann" } as const;
  const { apiClient, clientSecret } = await operator.createApiClient({ projectId }, call());
  const oauth = { appSlug: "sandbox", clientId: "acme-client", clientSecret: "acme-secret" };
  const oauthAppId = (await api.createOauthApp(oauth, call(token))).oauthApp?.id ?? "";
  // So that the other project could do as much with things of its own.
  await api.createOauthApp(oauth, call(await tokenOf(account, otherProjectId)));
  const override = await api.createAppOverride({ appSlug: "tenant_key", name: "EU" }, call(token));
  const ownApp = "own_crm";
  await api.createApp({ definition: definitionOf(ownApp) }, call(token));
  const hook = { environment: development, url: "https://hooks.example.com/deputy" } as const;
  const { webhook } = await api.setWebhook(hook, call(token));

  /** A connect token of a user, made for a member or for nobody. */
  async function userToken(actor?: Actor, externalUserId = "ann", requireVerification = false) {
    const maker = await tokenOf(account, projectId, { actor });
    const more = requireVerification ? { requireVerification, successRedirectUri: "https://acme.test/" } : {};
    return (await api.createConnectToken({ ...whose, externalUserId, ...more }, call(maker))).token;
  }

  /** A connection that waits at the provider, and how to end it. */
  async function start(connectToken: string) {
    const request = { appSlug: "sandbox", browserBinding: binding };
    const { connectionId, authorizationUrl } = await api.startConnection(request, call(connectToken));
    return { connectionId, state: new URL(authorizationUrl).searchParams.get("state") ?? "" };
  }

  /** An account of a member or of nobody, and a connection that waits for its verification. */
  async function ofMember(actor?: Actor) {
    const credential = { $case: "grant", value: { accessToken: "the-access-token" } } as const;
    const maker = await tokenOf(account, projectId, { actor });
    const made = await api.createAccount({ ...whose, appSlug: "sandbox", credential }, call(maker));
    const { connectionId, state } = await start(await userToken(actor, "ann", true));
    const { verifier } = await gateway.completeConnection({ state, code: "code", browserBinding: binding }, call());
    return { accountId: made.account?.id ?? "", connectionId, verifier };
  }

  const [ofNobody, ofMia] = [await ofMember(), await ofMember(owner)];
  const { state } = await start(await userToken());
  const { events } = await api.listEvents({ environment: development }, call(token));
  const shared: Things = {
    ...{ user: "ann", ...ofNobody, state, connectToken: await userToken() },
    ...{ oauthAppId, appOverrideId: override.appOverride?.id ?? "", ownApp },
    ...{ clientId: apiClient?.id ?? "", clientSecret, eventId: events[0]?.id ?? "" },
  };
  const hidden: Things = { ...shared, ...ofMia };
  return {
    ...{ projectId, otherProjectId, token, shared, hidden, userToken, webhookId: webhook?.id ?? "" },
    /** What no answer to another project may hold. */
    secrets: [projectId, ...idsOf(shared), ...idsOf(hidden), webhook?.id ?? ""],
    /** What no answer to another environment may hold. */
    ofEnvironment: [ofNobody, ofMia].flatMap(idsOf).concat(shared.eventId, webhook?.id ?? ""),
    /** What no answer to another user may hold. */
    ofUser: [ofNobody, ofMia].flatMap(idsOf),
    /** What no answer to a member may hold who may not see it. */
    ofOwner: idsOf(ofMia),
  };
}

function idsOf(things: object): string[] {
  return Object.values(things).filter((value) => /^(apn|con|oa|aov|cli|evt|own)_/.test(value));
}

/** An app that a project may define. */
export function definitionOf(slug: string): string {
  return JSON.stringify({
    ...{ slug, name: `App ${slug}`, auth: "keys" },
    custom_fields: [{ name: "api_key", label: "Key", secret: true }],
    proxy: {
      ...{ enabled: true, base_url: "https://api.crm.com", allowed_domains: ["api.crm.com"] },
      inject: { headers: { authorization: "Bearer {{credential.api_key}}" } },
    },
  });
}
