// A project's own apps in the vault: judged again, known to their project alone, found by every process, and used for all that
// the catalog's apps are used for: authorizing, leasing, refreshing (by its reader and by the loop), revoking.
import { expect, test } from "vitest";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { LeaseInvalidationReason } from "#proto/deputy/vault/v1/leases.ts";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import { startProviderShim } from "../support/provider-shim.ts";
import { testTls } from "../support/tls.ts";
import { granted } from "./stand-in-app.ts";
import { redirectUri, soon, tokenWith, until, vaultFixture, watchingProxyId, whose } from "./vault-fixture.ts";
import { watchLeasesAs } from "./watching-proxy.ts";

const vault = await vaultFixture();
const { asAccount, catalog, db, makeDue, newAccountId, rowOf, shim } = vault;
const slowShim = await startProviderShim(vault.provider.url, await testTls("sandbox"));
vault.ends.push(() => slowShim.stop());
vault.exemptTargets.push(slowShim.address);
const second = await vault.startVault({ loop: true });
const atSecond = await second.as("account");
const proxyAtSecond = await second.as("proxy");

type Definition = Record<string, unknown>;
/** An entry of the test's catalog as a project would bring it. */
const like = (slug: string, more: Definition): Definition => ({
  // Definitions lie open in the database, where no text may look like a key.
  ...JSON.parse(JSON.stringify(catalog.get(slug)).replaceAll("sandbox-key-", "sandbox.key.")),
  ...{ development: false, ...more },
});
const put = (definition: Definition, projectId = "proj_1", client = asAccount) =>
  client.putApp({ projectId, definition: JSON.stringify(definition) }, soon());
const putClient = (appSlug: string, projectId = "proj_1") =>
  asAccount.putOauthClient(
    {
      ...{ projectId, oauthAppId: `oa_${appSlug}`, appSlug },
      ...{ clientId: "deputy-test", clientSecrets: [vault.clientSecret] },
    },
    soon(),
  );
const storeKey = (appSlug: string, projectId = "proj_1", client = asAccount) => {
  const material = { $case: "fields", value: { values: { api_key: "sandbox-key-0123456789" } } } as const;
  const accountId = newAccountId();
  return client.storeCredential({ ...whose, projectId, accountId, appSlug, material }, soon()).then(() => accountId);
};

/** Connects an account of an own app by the whole flow. */
async function connect(appSlug: string): Promise<string> {
  const accountId = newAccountId();
  const request = { ...whose, accountId, appSlug, oauthAppId: `oa_${appSlug}`, redirectUri };
  const { authorizationUrl } = await asAccount.startAuthorization(request, soon());
  const back = new URL(await answerConsent({ authorizationUrl, decision: "allow", ca: vault.tls.ca }));
  const value = (parameter: string) => back.searchParams.get(parameter) ?? "";
  await asAccount.completeAuthorization({ state: value("state"), code: value("code"), issuer: value("iss") }, soon());
  return accountId;
}

test("judges a definition by the schema and the egress rules, and takes no slug of the catalog", async () => {
  await expect(put({ slug: "X" })).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    violations: expect.arrayContaining([expect.objectContaining({ field: "definition.proxy" })]),
  });
  const app = like("sandbox_header_key", { slug: "local_one" });
  const proxy = app.proxy as Definition;
  await expect(put({ ...app, proxy: { ...proxy, base_url: "https://localhost:9999/x" } })).rejects.toMatchObject({
    violations: [{ field: "definition.proxy.base_url" }],
  });
  await expect(put(like("sandbox", {}))).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
  await expect(storeKey("local_one")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(vault.asProxy.putApp({ projectId: "proj_1", definition: "x" }, soon())).rejects.toMatchObject({
    code: "PERMISSION_DENIED",
  });
});

test("knows an app in its project alone, in every process, and by its newest definition", async () => {
  const app = like("sandbox_header_key", { slug: "mine" });
  await put(app);
  const accountId = await storeKey("mine", "proj_1", atSecond);
  expect((await vault.lease(accountId)).lease).toMatchObject({
    appSlug: "mine",
    headers: [{ name: "x-api-key", value: "sandbox-key-0123456789" }],
  });
  await expect(storeKey("mine", "proj_2")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  const other = {
    ...app,
    proxy: { ...(app.proxy as Definition), inject: { headers: { "x-other": "{{credential.api_key}}" } } },
  };
  await put(other, "proj_2");
  const foreign = await storeKey("mine", "proj_2");
  const token = await tokenWith({ project_id: "proj_2" });
  const asked = { ...whose, projectId: "proj_2", accountId: foreign, proxyId: watchingProxyId };
  expect((await vault.asProxy.leaseInjection(asked, soon(token))).lease?.headers[0]?.name).toBe("x-other");
  expect((await vault.lease(accountId)).lease?.headers[0]?.name).toBe("x-api-key");
  await put(other, "proj_1", atSecond);
  expect((await vault.lease(accountId)).lease?.headers[0]?.name).toBe("x-other");
  expect((await vault.leaseBy(proxyAtSecond, accountId)).lease?.headers[0]?.name).toBe("x-other");
});

test("a change of the definition ends the leases by the one before, ahead of its answer", async () => {
  const app = like("sandbox_header_key", { slug: "changing" });
  await put(app);
  const accountId = await storeKey("changing");
  const watching = await watchLeasesAs(proxyAtSecond, "prx_changing");
  await proxyAtSecond.leaseInjection({ ...whose, accountId, proxyId: "prx_changing" }, soon(vault.token));
  watching.acknowledging = false;
  let isAnswered = false;
  const changing = put({ ...app, name: "Changed" }).then(() => {
    isAnswered = true;
  });
  await until(() => watching.invalidations.some((one) => one.accountId === accountId));
  expect(watching.invalidations.find((one) => one.accountId === accountId)?.reason).toBe(
    LeaseInvalidationReason.CHANGED,
  );
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(isAnswered).toBe(false);
  watching.acknowledging = true;
  watching.acknowledge();
  await changing;
  watching.goodbye();
});

test("authorizes, refreshes for its reader and by the loop, and revokes at the provider", async () => {
  await put(like("sandbox", { slug: "mine_oauth" }));
  await putClient("mine_oauth");
  const accountId = await connect("mine_oauth");
  const { lease } = await vault.lease(accountId);
  expect(await vault.callApi(lease)).toBe(200);
  await vault.endTokenIn(accountId, -1);
  const { lease: renewed } = await vault.lease(accountId);
  expect(renewed).toMatchObject({ refreshed: true, generation: 2n });
  expect(await vault.callApi(renewed)).toBe(200);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).generation === 3n);
  const [receipt] = await vault.destroy(accountId);
  expect(receipt?.providerRevocation).toBe(ProviderRevocation.PENDING);
  const states = () => db.selectFrom("revocations").select("state").where("accountId", "=", accountId).execute();
  await until(async () => (await states()).every(({ state }) => state === "DONE"));
  expect(await vault.callApi(renewed)).toBe(401);
}, 60_000);

test("an app that has ended stores, leases and authorizes nothing, and its grants are still revoked", async () => {
  await put(like("sandbox", { slug: "ending" }));
  await putClient("ending");
  const accountId = await connect("ending");
  await asAccount.destroyApp({ projectId: "proj_1", appSlug: "ending" }, soon());
  await asAccount.destroyApp({ projectId: "proj_1", appSlug: "ending" }, soon());
  await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(connect("ending")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(putClient("ending")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  const sent = shim.requests.length;
  const [receipt] = await vault.destroy(accountId);
  expect(receipt?.providerRevocation).toBe(ProviderRevocation.PENDING);
  await until(() => shim.requests.slice(sent).some((path) => path.includes("revocation")));
});

test("an app that ends while a user is at the provider gets no credential, and the grant is revoked", async () => {
  await put(like("sandbox", { slug: "racing" }));
  await putClient("racing");
  const accountId = newAccountId();
  const request = { ...whose, accountId, appSlug: "racing", oauthAppId: "oa_racing", redirectUri };
  const { authorizationUrl } = await asAccount.startAuthorization(request, soon());
  const back = new URL(await answerConsent({ authorizationUrl, decision: "allow", ca: vault.tls.ca }));
  const value = (parameter: string) => back.searchParams.get(parameter) ?? "";
  const gate = Promise.withResolvers<void>();
  let isAsked = false;
  shim.misbehave(async (path) => {
    if (path !== "/token") return undefined;
    isAsked = true;
    await gate.promise;
    return undefined;
  });
  const redirect = { state: value("state"), code: value("code"), issuer: value("iss") };
  const completing = asAccount.completeAuthorization(redirect, soon());
  await until(() => isAsked);
  await asAccount.destroyApp({ projectId: "proj_1", appSlug: "racing" }, soon());
  gate.resolve();
  await expect(completing).rejects.toMatchObject({ code: "FAILED_PRECONDITION" });
  expect(await db.selectFrom("credentials").select("state").where("accountId", "=", accountId).execute()).toEqual([]);
  expect(await db.selectFrom("revocations").select("state").where("accountId", "=", accountId).execute()).toHaveLength(
    1,
  );
});

test("own apps whose provider hangs get a few requests at a time, and delay nobody else's accounts", async () => {
  const sandbox = like("sandbox", {});
  const oauth2 = { ...(sandbox.oauth2 as Definition), token: { url: `${slowShim.url}/token` } };
  const gate = Promise.withResolvers<void>();
  let atWork = 0;
  slowShim.misbehave(async () => {
    atWork += 1;
    await gate.promise;
    return granted();
  });
  const importGrant = async (appSlug: string, projectId = "proj_1") => {
    const accountId = newAccountId();
    const material = {
      $case: "grant",
      value: {
        accessToken: "sandbox-token-a",
        refreshToken: `sandbox-token-${accountId}`,
        expireTime: new Date(Date.now() + 600_000),
      },
    } as const;
    const subject = { ...whose, projectId, accountId, appSlug, oauthAppId: `oa_${appSlug}` };
    await asAccount.storeCredential({ ...subject, material }, soon());
    return accountId;
  };
  await put(like("sandbox", { slug: "hanging", oauth2 }));
  await putClient("hanging");
  const waiting = await Promise.all(Array.from({ length: 12 }, () => importGrant("hanging")));
  await makeDue(...waiting);
  await until(() => atWork >= 4);
  // The same slug in another project is another app.
  shim.misbehave((path) => (path === "/token" ? granted() : undefined));
  await put(like("sandbox", { slug: "hanging" }), "proj_2");
  await putClient("hanging", "proj_2");
  const others = await Promise.all(Array.from({ length: 6 }, () => importGrant("hanging", "proj_2")));
  await makeDue(...others);
  await until(async () => (await Promise.all(others.map(rowOf))).every(({ generation }) => generation === 2n));
  expect(atWork).toBe(4);
  gate.resolve();
  await until(async () => (await Promise.all(waiting.map(rowOf))).every(({ generation }) => generation === 2n));
});
