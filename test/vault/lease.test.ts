// Who gets a lease and of what: the callers table, the token's project, environment and user, the app's templates, and rows
// that somebody has changed.
import { expect, test } from "vitest";
import { findLeaks } from "../support/leaks.ts";
import { soon, tokenWith, vaultFixture, watchingProxyId, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asProxy, asAccount, lease, connectAccount } = vault;

async function storeKey(appSlug: string, apiKey = "sandbox-key-12345678"): Promise<string> {
  const accountId = vault.newAccountId();
  const material = { $case: "fields", value: { values: { api_key: apiKey } } } as const;
  await asAccount.storeCredential({ ...whose, accountId, appSlug, material }, soon());
  return accountId;
}

test("puts a key where its app wants it", async () => {
  const inHeader = await lease(await storeKey("sandbox_header_key"));
  expect(inHeader.lease).toMatchObject({
    appSlug: "sandbox_header_key",
    proxyEnabled: true,
    headers: [{ name: "x-api-key", value: "sandbox-key-12345678" }],
    query: [],
    baseUrl: `${vault.provider.url}/keys/header`,
    allowedDomains: ["localhost"],
    allowedPorts: [Number(new URL(vault.provider.url).port)],
    absoluteUrlsAllowed: true,
    generation: 1n,
  });
  const inQuery = await lease(await storeKey("sandbox_query_key"));
  expect(inQuery.lease).toMatchObject({ headers: [], query: [{ name: "api_key", value: "sandbox-key-12345678" }] });
});

test("refuses keys that the app's fields do not allow, naming the field and not the value", async () => {
  const stored = storeKey("sandbox_header_key", "a-wrong-value");
  await expect(stored).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await expect(stored).rejects.toThrow(/^fields\.values\.api_key: (?!.*a-wrong-value)/);
});

test("needs the proxy's certificate and the caller's token with connect:proxy, both", async () => {
  const accountId = await connectAccount();
  const request = { ...whose, accountId };
  await expect(asProxy.leaseInjection(request, soon())).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  await expect(asProxy.leaseInjection(request, soon("not.a.token"))).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  const narrow = await tokenWith({ scope: "connect:accounts:read" });
  await expect(asProxy.leaseInjection(request, soon(narrow))).rejects.toMatchObject({
    code: "PERMISSION_DENIED",
    reason: "SCOPE_MISSING",
  });
  for (const service of ["account", "operator", "gateway"] as const) {
    const client = await vault.vault.as(service);
    await expect(client.leaseInjection(request, soon(vault.token)), service).rejects.toMatchObject({
      code: "PERMISSION_DENIED",
    });
  }
});

test("lets nobody but the account service keep credentials, and nobody but operators see the status", async () => {
  for (const service of ["proxy", "operator", "gateway"] as const) {
    const client = await vault.vault.as(service);
    const named = { projectId: "proj_1", environment: 1 as const, accountId: "apn_1" };
    const calls = {
      get: client.getCredential(named, soon()),
      reveal: client.revealCredential({ ...named, purpose: "curious" }, soon()),
      // Operators destroy again what a backup brought back.
      ...(service !== "operator" && {
        destroy: client.destroyCredentials({ ...named, accountIds: ["apn_1"] }, soon()),
      }),
      complete: client.completeAuthorization({ state: "s" }, soon()),
    };
    for (const [name, call] of Object.entries(calls)) {
      await expect(call, `${service} ${name}`).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
    }
  }
  await expect(asAccount.getVaultStatus({}, soon())).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
});

test("answers for another project, environment or user as for what does not exist", async () => {
  const accountId = await connectAccount();
  const absent = { code: "NOT_FOUND" };
  const otherProject = await tokenWith({ project_id: "proj_2" });
  await expect(lease(accountId, otherProject)).rejects.toMatchObject(absent);
  const asOther = { ...whose, projectId: "proj_2", accountId };
  await expect(asProxy.leaseInjection(asOther, soon(otherProject))).rejects.toMatchObject(absent);
  for (const change of [{ environment: 2 as const }, { externalUserId: "user-2" }, { accountId: "apn_absent" }]) {
    const request = { ...whose, accountId, ...change };
    await expect(asProxy.leaseInjection(request, soon(vault.token))).rejects.toMatchObject({
      ...absent,
      message: "No such account.",
    });
  }
});

test("leases to a connect token its own user's accounts alone", async () => {
  const accountId = await connectAccount();
  const ofUser = (user: string) => tokenWith({ environment: 1, external_user_id: user });
  const request = { accountId };
  const { lease: own } = await asProxy.leaseInjection(request, soon(await ofUser("user-1")));
  expect(own?.headers).toHaveLength(1);
  await expect(asProxy.leaseInjection(request, soon(await ofUser("user-2")))).rejects.toMatchObject({
    code: "NOT_FOUND",
  });
  const claimed = asProxy.leaseInjection({ ...request, externalUserId: "user-1" }, soon(await ofUser("user-2")));
  await expect(claimed).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("renews many leases in one call, each judged like one that is asked for alone", async () => {
  const accountId = await connectAccount();
  const [token, ofUser] = [vault.token, await tokenWith({ environment: 1, external_user_id: "user-1" })];
  const renewal = (accessToken: string, change: object = {}) => ({ ...whose, accountId, accessToken, ...change });
  const otherProject = await tokenWith({ project_id: "proj_2" });
  const refused = [
    renewal("not.a.token"),
    renewal(await tokenWith({ scope: "connect:accounts:read" })),
    renewal(otherProject),
    renewal(otherProject, { projectId: "proj_2" }),
    renewal(token, { externalUserId: "user-2" }),
    renewal(token, { accountId: "apn_absent" }),
    renewal(token, { environment: 2 }),
    renewal(await tokenWith({ environment: 1, external_user_id: "user-2" }), { externalUserId: "" }),
  ];
  const renewals = [renewal(token), ...refused, { accountId, accessToken: ofUser }];
  const { results } = await asProxy.renewLeases({ proxyId: watchingProxyId, renewals }, soon());
  const { lease: single } = await lease(accountId);
  const times = { leaseExpireTime: expect.any(Date), leaseDurationMs: expect.any(Number) };
  const renewed = { lease: { ...single, ...times } };
  expect(results).toEqual([renewed, ...refused.map(() => ({ lease: undefined })), renewed]);
  for (const service of ["account", "operator", "gateway"] as const) {
    const client = await vault.vault.as(service);
    const asked = client.renewLeases({ proxyId: watchingProxyId, renewals }, soon(token));
    await expect(asked, service).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
  }
  const unwatched = asProxy.renewLeases({ proxyId: "prx_unknown", renewals }, soon());
  await expect(unwatched).rejects.toMatchObject({ reason: "WATCH_REQUIRED" });
});

test("says DATA_LOSS for a row that was changed, or whose secret was put in from another row", async () => {
  const [accountId, otherId] = [await connectAccount(), await connectAccount()];
  const { blob, dataKeyId, wrappedDataKey } = await vault.rowOf(otherId);
  const put = (values: object) =>
    vault.db.updateTable("credentials").set(values).where("accountId", "=", accountId).execute();
  const good = await vault.rowOf(accountId);
  const flipped = Buffer.from(good.blob ?? []);
  flipped[flipped.length - 1] = (flipped.at(-1) ?? 0) ^ 1;
  for (const [change, reason] of [
    [{ blob: flipped }, "TAMPERED"],
    [{ blob, dataKeyId, wrappedDataKey }, "TAMPERED"],
    [{ externalUserId: "user-1", appSlug: "sandbox", generation: 7n }, "TAMPERED"],
    [{ blob }, "WRONG_KEY"],
  ] as const) {
    await put(change);
    await expect(lease(accountId)).rejects.toMatchObject({ code: "DATA_LOSS", reason });
    const { blob: own, dataKeyId: key, wrappedDataKey: wrapped, generation } = good;
    await put({ blob: own, dataKeyId: key, wrappedDataKey: wrapped, generation });
  }
  expect((await lease(accountId)).lease?.generation).toBe(1n);
});

test("writes no secret to its log or to any column", async () => {
  const accountId = await connectAccount();
  const { lease: given } = await lease(accountId);
  const accessToken = given?.headers[0]?.value.replace("Bearer ", "") ?? "";
  await vault.endTokenIn(accountId, -1);
  vault.shim.misbehave(() => ({
    status: 400,
    body: `{"error":"${accessToken}","error_description":"${accessToken}"}`,
  }));
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "REFRESH_FAILING" });
  await storeKey("sandbox_query_key", "sandbox-key-never-to-be-seen");
  const secrets = { accessToken, clientSecret: vault.clientSecret, apiKey: "sandbox-key-never-to-be-seen" };
  expect(vault.vault.lines.length).toBeGreaterThan(10);
  expect(findLeaks(vault.vault.lines.join("\n"), secrets)).toEqual([]);
  for (const table of ["credentials", "oauthClients", "authorizations", "revocations"] as const) {
    const rows = await vault.db.selectFrom(table).selectAll().execute();
    const text = JSON.stringify(rows, (_key, value) =>
      typeof value === "bigint"
        ? `${value}`
        : value?.type === "Buffer"
          ? Buffer.from(value.data).toString("hex")
          : value,
    );
    expect(findLeaks(text, secrets), table).toEqual([]);
  }
});
