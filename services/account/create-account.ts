// CreateAccount: an account without a browser, made of keys or of a grant obtained elsewhere, or a new credential for one
// that exists. The vault seals first and the row is written second, so that an account never waits for its credential; a
// reservation from before sees to it that what the vault was given for an account that then could not be made is destroyed,
// and that of one that was made, whatever the caller heard, it is not.
import type { CatalogApp } from "#libs/catalog.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { digest, newId, randomText } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { CreateAccountRequest } from "#proto/deputy/account/v1/accounts.ts";
import { doomReservation, extendReservation, reserveAccount, takeReservation } from "./account-reservations.ts";
import { accountRevoked, getAccount, type NewAccount } from "./accounts.ts";
import { checkBaseUrl, chooseApp, chooseOauthAppId, completeFields } from "./app-choice.ts";
import {
  claimConnectToken,
  findUsableConnectToken,
  invalidConnectToken,
  lockUsableConnectToken,
  releaseConnectToken,
} from "./connect-tokens.ts";
import { auditConnection, connectAccount, webhookOf } from "./connection-outcomes.ts";
import { getConnection, insertConnection, waitingFacts } from "./connections.ts";
import { ensureUser } from "./external-users.ts";
import { afterwards, type HandlerGroup, ownRight, toDo, type Vault } from "./handler-group.ts";
import { accountMessage, credentialFacts } from "./messages.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import { applyOverride } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { getProject } from "./projects.ts";
import type { AccountDatabase, AccountRow, ConnectTokenRow, EnvironmentNumber } from "./schema.ts";
import { destroyRemains } from "./sweep-connecting.ts";
import { reconnectUnverifiable, verifiableUntil } from "./verification.ts";

type Material = NonNullable<CreateAccountRequest["credential"]>;

/** What is to be done, all of it judged. */
interface Plan {
  readonly account: Omit<NewAccount, "authorizedScopes">;
  readonly material: Material;
  /** Whether the keys are to be tried. */
  readonly test: boolean;
  /** The account as it is, when it gets a new credential. */
  readonly before: AccountRow | undefined;
  readonly token: ConnectTokenRow | undefined;
  /** The attempt that the connect token's one use goes to, and the connection where one is made. */
  readonly attempt: string;
}

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "storeCredential" | "destroyCredentials" | "destroyOauthClient">;
  readonly catalogOf: CatalogOf;
  readonly developmentUsers: number;
}

const action = "CreateAccount";

export function createAccountHandler(
  { db, vault, catalogOf, developmentUsers }: Collaborators,
  now: () => number,
): HandlerGroup<"createAccount"> {
  /** Nothing is written or sent before all of it has been judged. */
  async function plan(request: CreateAccountRequest, token: ConnectTokenRow | undefined, call: Call): Promise<Plan> {
    const { projectId, externalUserId, accountId } = request;
    if (externalUserId === "") throw invalidField("external_user_id", "is required");
    const project = await getProject(db, projectId);
    const app = chooseApp(await catalogOf(projectId), request.appSlug, token);
    const material = judgeMaterial(app, await overridden(app, request));
    const oauthAppId =
      app.auth === "oauth2"
        ? (await chooseOauthApp(db, projectId, app.slug, chooseOauthAppId(request.oauthAppId, token))).id
        : "";
    const before = accountId === "" ? undefined : await getAccount(db, request, accountId, toDo("manage", call));
    if (before !== undefined && before.appSlug !== app.slug) throw notFound("account");
    if (before !== undefined && token?.requireVerification) throw reconnectUnverifiable();
    const whose = { projectId, environment: request.environment as EnvironmentNumber, externalUserId };
    const ownerMemberId = call.caller.token?.actor?.memberId ?? "";
    const what = { id: accountId || newId("apn"), appSlug: app.slug, oauthAppId, name: request.name };
    // Not by the account's id: two calls that reconnect the same account are two attempts.
    const attempt = newId("con");
    const account = { ...whose, ...what, ownerMemberId };
    return { account, material, test: project.requireKeyAuthTest, before, token, attempt };
  }

  /** The credential with the override's values over its own. */
  async function overridden(app: CatalogApp, { projectId, appOverrideId, credential }: CreateAccountRequest) {
    if (appOverrideId === "") return credential;
    if (credential?.$case !== "fields") throw invalidField("app_override_id", "is for an account made of fields");
    const { fields } = await applyOverride(db, projectId, app, appOverrideId, credential.value.values);
    return { $case: "fields", value: { values: { ...fields } } } as const;
  }

  /** Takes the token's one use, and reserves the id of a new account. */
  async function claim({ account, before, token, attempt }: Plan): Promise<void> {
    const time = new Date(now());
    await db.transaction().execute(async (tx) => {
      if (token !== undefined) {
        if (!(await lockUsableConnectToken(tx, token, time))) throw invalidConnectToken();
        await claimConnectToken(tx, token, attempt);
      }
      if (before === undefined) await reserveAccount(tx, { ...account, accountId: account.id }, time);
    });
  }

  async function seal({ account, material, test }: Plan, call: Call): Promise<NewAccount> {
    const { id: accountId, name: _name, ownerMemberId: _owner, ...of } = account;
    const { credential } = await vault.storeCredential({ ...of, accountId, material, test }, ownRight(call));
    return { ...account, authorizedScopes: credential?.scopes ?? [], ...credentialFacts(credential) };
  }

  async function connect({ before, token, attempt }: Plan, account: NewAccount, call: Call): Promise<AccountRow> {
    const time = new Date(now());
    const reconnects = before !== undefined;
    return db.transaction().execute(async (tx) => {
      if (!reconnects) {
        await takeReservation(tx, { projectId: account.projectId, accountId: account.id });
        await ensureUser(tx, account, time, developmentUsers);
      }
      const from = { connectionId: token === undefined ? "" : attempt, webhookUri: webhookOf(token) };
      const row = await connectAccount(tx, { account, before, reconnects, ...from }, { action, call, time });
      if (row === undefined) throw accountRevoked(time);
      return row;
    });
  }

  /** Leaves the account to VerifyConnection: a connection that has its credential already. */
  async function wait(token: ConnectTokenRow, id: string, account: NewAccount, call: Call) {
    const { projectId, environment, externalUserId, id: accountId, appSlug, oauthAppId } = account;
    const verifier = randomText();
    const createTime = new Date(now());
    const expireTime = verifiableUntil(createTime);
    const whose = { projectId, environment, externalUserId, connectTokenId: token.id, appSlug, oauthAppId };
    // No provider sends a browser back to it.
    const nowhere = { stateDigest: digest(randomText()), browserBindingDigest: digest(randomText()) };
    await db.transaction().execute(async (tx) => {
      const connection = { ...whose, id, accountId, reconnects: false, ...nowhere, createTime, expireTime };
      const { name: accountName, authorizedScopes } = account;
      await insertConnection(tx, connection, {
        verifierDigest: digest(verifier),
        accountName,
        authorizedScopes,
        ...waitingFacts(account),
        expireTime,
      });
      await extendReservation(tx, { projectId, accountId }, expireTime);
      await auditConnection(tx, await getConnection(tx, whose, id), { action, call, time: createTime });
    });
    return { account: undefined, connectionId: id, verifier };
  }

  /** The account that was made although the answer was lost; else undoes what was begun. */
  async function undo({ account, before, token, attempt }: Plan, error: unknown, call: Call) {
    const { projectId, environment, id: accountId } = account;
    if (before === undefined) {
      const time = new Date(now());
      const reservation = await doomReservation(db, { projectId, accountId }, time);
      if (reservation === undefined) return getAccount(db, account, accountId, toDo("view", call));
      // What cannot be destroyed now is destroyed by the sweep: the first error is the one to be told.
      await destroyRemains({ db, vault }, reservation, time).catch(() => undefined);
    } else if (error instanceof StatusError && error.reason === "ACCOUNT_REVOKED") {
      // Never for an account that lives on: there the vault has the old credential or the new one, and either is good.
      await vault.destroyCredentials({ projectId, environment, accountIds: [accountId] }, afterwards(call));
    }
    if (token !== undefined) await releaseConnectToken(db, token, attempt);
    return undefined;
  }

  return {
    async createAccount(request, call) {
      const token = await findUsableConnectToken(db, call.caller.token, new Date(now()));
      const planned = await plan(request, token, call);
      await claim(planned);
      try {
        const account = await seal(planned, call);
        if (token?.requireVerification) return await wait(token, planned.attempt, account, call);
        return { account: accountMessage(await connect(planned, account, call)), connectionId: "", verifier: "" };
      } catch (error) {
        const made = await undo(planned, error, call).catch(() => undefined);
        if (made === undefined) throw error;
        return { account: accountMessage(made), connectionId: "", verifier: "" };
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
