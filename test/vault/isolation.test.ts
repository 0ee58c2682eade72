// Who may call which method of the vault: every method by every certificate, with and without a token, held to this table. A
// method without a row fails.
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { admission } from "../support/outcomes.ts";
import { testTls } from "../support/tls.ts";
import { tokenWith, vaultFixture } from "./vault-fixture.ts";

const definition = CredentialVaultDefinition;
type Method = keyof typeof definition.methods;
type Service = "account" | "gateway" | "operator" | "proxy" | "vault";

/** By certificate alone, or by certificate and a token with the scope. */
const account: readonly string[] = ["account"];
const operator: readonly string[] = ["operator"];
const lease = "proxy with connect:proxy";
const table: Readonly<Record<Method, readonly string[]>> = {
  ...{ storeCredential: account, startAuthorization: account, completeAuthorization: account, getCredential: account },
  ...{ putOauthClient: account, destroyOauthClient: account, listCredentialChanges: account, eraseUser: account },
  ...{
    createWebhookKey: account,
    signWebhook: account,
    destroyWebhookKey: account,
    putApp: account,
    destroyApp: account,
  },
  ...{ exportCredentials: operator, importCredentials: operator, rotateKeys: operator, getVaultStatus: operator },
  ...{ destroyCredentials: ["account", "operator"], watchLeases: ["proxy"], renewLeases: ["proxy"] },
  ...{ leaseInjection: [lease], refreshCredential: ["account", lease] },
  revealCredential: ["account with credentials:reveal"],
};

const services: readonly Service[] = ["account", "gateway", "operator", "proxy", "vault"];
const { vault } = await vaultFixture();
const connect = async (tls: Parameters<typeof createClient>[1]["tls"]) => {
  const client = createClient(definition, { address: `127.0.0.1:${vault.port}`, tls, service: "vault" });
  afterAll(() => client.close());
  return client;
};
const enter = (client: object, method: string, token?: string) => admission({ definition, client }, method, token);

test("has a row for every method, and no other", () => {
  expect(Object.keys(table).sort()).toEqual(Object.keys(definition.methods).sort());
});

test.each(services)("lets %s do what its row says, with a token and without", async (service) => {
  const client = await connect(await testTls(service));
  for (const [method, ways] of Object.entries(table)) {
    const needed = ways
      .find((way) => way.startsWith(`${service} with `))
      ?.split(" ")
      .at(-1);
    const isFree = ways.includes(service);
    const refused = "PERMISSION_DENIED CALLER_NOT_ALLOWED";
    const without = isFree ? "admitted" : needed ? "UNAUTHENTICATED TOKEN_REQUIRED" : refused;
    expect(await enter(client, method), `${service} ${method}`).toBe(without);
    for (const scope of ["connect:proxy", "credentials:reveal", "connect:*"]) {
      const isEnough = needed === scope || (scope === "connect:*" && needed === "connect:proxy");
      const lacking = needed ? "PERMISSION_DENIED SCOPE_MISSING" : refused;
      const want = isFree || isEnough ? "admitted" : lacking;
      expect(await enter(client, method, await tokenWith({ scope })), `${service} ${method} ${scope}`).toBe(want);
    }
    expect(await enter(client, method, "nonsense")).toBe("UNAUTHENTICATED TOKEN_INVALID");
  }
});

test("does not speak to anybody without a certificate", async () => {
  const { ca, trustDomain } = await testTls("account");
  expect(await enter(await connect({ ca, trustDomain }), "getVaultStatus", await tokenWith())).toMatch(/^UNAVAILABLE/);
});
