// CreateAccount: an account without a browser, made of keys or of a grant obtained elsewhere, or a new credential for one
// that exists. The vault seals first and the row is written second, so that an account never waits for its credential; what
// the vault was given for an account that then could not be made is destroyed again.
import type { CatalogApp } from "#libs/catalog.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { CreateAccountRequest } from "#proto/deputy/account/v1/accounts.ts";
import { accountRevoked, getAccount, insertAccount, type NewAccount, updateReconnectedAccount } from "./accounts.ts";
import { checkBaseUrl, chooseApp, chooseOauthAppId, completeFields } from "./app-choice.ts";
import {
  claimConnectToken,
  findUsableConnectToken,
  invalidConnectToken,
  releaseConnectToken,
} from "./connect-tokens.ts";
import { afterwards, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { accountMessage, credentialFacts } from "./messages.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import { applyOverride } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { ensureUser, getProject } from "./projects.ts";
import type { AccountDatabase, ConnectTokenRow, EnvironmentNumber } from "./schema.ts";

type Material = NonNullable<CreateAccountRequest["credential"]>;
type Plan = Omit<NewAccount, "authorizedScopes"> & { readonly material: Material };

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "storeCredential" | "destroyCredentials">;
  readonly catalogOf: CatalogOf;
}

export function createAccountHandler(
  { db, vault, catalogOf }: Collaborators,
  now: () => number,
): HandlerGroup<"createAccount"> {
  /** The row to be written, and the vault's request: nothing is written or sent before all of it has been judged. */
  async function plan(request: CreateAccountRequest, token: ConnectTokenRow | undefined): Promise<Plan> {
    const { projectId, externalUserId, accountId } = request;
    if (externalUserId === "") throw invalidField("external_user_id", "is required");
    await getProject(db, projectId);
    const app = chooseApp(await catalogOf(projectId), request.appSlug, token);
    const material = judgeMaterial(app, await overridden(app, request));
    const oauthAppId =
      app.auth === "oauth2"
        ? (await chooseOauthApp(db, projectId, app.slug, chooseOauthAppId(request.oauthAppId, token))).id
        : "";
    if (accountId !== "") {
      const account = await getAccount(db, request, accountId);
      if (account.appSlug !== app.slug) throw notFound("account");
    }
    return {
      projectId,
      id: accountId || newId("apn"),
      environment: request.environment as EnvironmentNumber,
      externalUserId,
      appSlug: app.slug,
      oauthAppId,
      name: request.name,
      material,
    };
  }

  /** The credential with the override's values over its own. */
  async function overridden(app: CatalogApp, { projectId, appOverrideId, credential }: CreateAccountRequest) {
    if (appOverrideId === "") return credential;
    if (credential?.$case !== "fields") throw invalidField("app_override_id", "is for an account made of fields");
    const { fields } = await applyOverride(db, projectId, app, appOverrideId, credential.value.values);
    return { $case: "fields", value: { values: { ...fields } } } as const;
  }

  async function create({ material, ...account }: Plan, isNew: boolean, call: Call) {
    const { projectId, environment, externalUserId, id: accountId, appSlug, oauthAppId } = account;
    const { credential } = await vault.storeCredential(
      { projectId, environment, externalUserId, accountId, appSlug, oauthAppId, material },
      ownRight(call),
    );
    const connected = { ...account, authorizedScopes: credential?.scopes ?? [], ...credentialFacts(credential) };
    const time = new Date(now());
    if (isNew) await ensureUser(db, account, time);
    const row = isNew ? await insertAccount(db, connected, time) : await updateReconnectedAccount(db, connected, time);
    if (row === undefined) throw accountRevoked(time);
    return row;
  }

  /** Never for an account that lives on: there the vault has the old credential or the new one, and either is good. */
  async function destroyRemains({ projectId, environment, id }: Plan, call: Call): Promise<void> {
    await vault.destroyCredentials({ projectId, environment, accountIds: [id] }, afterwards(call));
  }

  return {
    async createAccount(request, call) {
      const token = await findUsableConnectToken(db, call.caller.token, new Date(now()));
      const planned = await plan(request, token);
      // Not by the account's id: two calls that reconnect the same account are two attempts.
      const attempt = newId("con");
      if (token && !(await claimConnectToken(db, token, attempt))) throw invalidConnectToken();
      const isNew = request.accountId === "";
      try {
        return { account: accountMessage(await create(planned, isNew, call)) };
      } catch (error) {
        const isRevoked = error instanceof StatusError && error.reason === "ACCOUNT_REVOKED";
        // What cannot be cleaned up is sealed and has no account: the first error is the one to be told.
        await Promise.allSettled([
          isNew || isRevoked ? destroyRemains(planned, call) : undefined,
          token && releaseConnectToken(db, token, attempt),
        ]);
        throw error;
      }
    },
  };
}

/** What the vault is to seal: fields as the app wants them, or a grant for an app with OAuth. */
function judgeMaterial(app: CatalogApp, credential: CreateAccountRequest["credential"]): Material {
  if (credential === undefined) throw invalidField("credential", "is required");
  if (credential.$case === "grant") {
    if (app.auth !== "oauth2") throw invalidField("grant", "is for apps with OAuth: this app has fields");
    return credential;
  }
  if (app.auth === "oauth2") throw invalidField("fields", "this app is connected with OAuth: use StartConnection");
  const values = completeFields(app.custom_fields, credential.value.values);
  checkBaseUrl(app, values);
  return { $case: "fields", value: { values } };
}
