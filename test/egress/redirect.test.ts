// A redirect is an answer: each redirect vector over gRPC and over REST, with a listener where it points to.
import { type AddressInfo, createServer, type Server } from "node:net";
import { afterAll, beforeAll, beforeEach, expect } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { proxyHttpError } from "../../services/gateway/http-errors.ts";
import { type Action, testVectors } from "../support/integration-vectors.ts";
import { vaultFixture } from "../vault/vault-fixture.ts";
import { type RestChain, startRestChain } from "./rest-chain.ts";

const vault = await vaultFixture();
let chain: RestChain;
let elsewhere: Server;
let hits = 0;
beforeAll(async () => {
  chain = await startRestChain();
  elsewhere = createServer((socket) => {
    hits += 1;
    socket.destroy();
  });
  await new Promise<void>((resolve) => elsewhere.listen(0, "127.0.0.1", resolve));
});
afterAll(async () => {
  await chain.stop();
  await new Promise((resolve) => elsewhere.close(resolve));
});
beforeEach(() => {
  chain.proxy.reset();
  hits = 0;
});

const listening = () => `127.0.0.1:${(elsewhere.address() as AddressInfo).port}`;

/** The vector's own location, and the same on the listener: neither is asked for, whatever the method. */
const isData: Action = async ({ config }) => {
  const { status = 0, location = "" } = config.upstream ?? {};
  const there = new URL(location);
  there.host = listening();
  for (const target of [location, there.href]) {
    for (const method of ["GET", "POST"]) {
      chain.proxy.upstream.requests.length = 0;
      chain.proxy.upstream.answerWith(`HTTP/1.1 ${status} X\r\nlocation: ${target}\r\ncontent-length: 0\r\n\r\n`);
      const answer = await chain.forward({ url: "/go", method });
      expect(answer.status).toBe(status);
      expect(answer.headers).toContainEqual({ name: "location", value: target });
      expect(chain.proxy.upstream.requests).toHaveLength(1);
      const rest = await chain.send("/go", { method });
      const seen = [rest.status, rest.headers.get("location"), rest.headers.get("x-upstream-location")];
      expect(seen).toEqual([status, null, target]);
      expect(chain.proxy.upstream.requests).toHaveLength(2);
    }
  }
  expect(hits).toBe(0);
};

testVectors("redirect", {
  "redirect-001": isData,
  "redirect-002": isData,
  "redirect-003": isData,
  "redirect-004": isData,
  "redirect-005": isData,
  "redirect-010": async ({ code, http }) => {
    const accountId = await vault.connectAccount();
    const headers = { location: `https://${listening()}/` };
    vault.shim.misbehave((path) => (path === "/token" ? { status: 302, body: "", headers } : undefined));
    const before = vault.tokenRequests();
    await vault.endTokenIn(accountId, -1);
    const error = await vault.lease(accountId).catch((reason: unknown) => reason);
    if (!(error instanceof StatusError)) throw new Error("no refusal");
    expect([error.code, proxyHttpError(error).status]).toEqual([code, http]);
    expect(await vault.credential(accountId)).toMatchObject({
      state: CredentialState.ACTIVE,
      stateReason: "PROVIDER_FAILING",
    });
    expect([vault.tokenRequests() - before, hits]).toEqual([1, 0]);
  },
});
