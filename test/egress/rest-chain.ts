// A gateway in front of a proxy in front of a raw upstream: what a vector says can be seen over REST and over gRPC.
import type { AddressInfo } from "node:net";
import { StatusError } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { ForwardRequest, ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { buildGateway } from "../../services/gateway/gateway.ts";
import { forwardRequest, type ProxyFixture, startProxyFixture } from "../proxy/proxy-fixture.ts";
import { testTls } from "../support/tls.ts";

/** The running chain. */
export interface RestChain {
  readonly proxy: ProxyFixture;
  /** Every line that the gateway has logged. */
  readonly logged: string[];
  /** One request over gRPC; rejects with a StatusError. */
  forward(change?: Partial<ForwardRequest>): Promise<ForwardResponse>;
  /** The code of the refusal over gRPC. */
  refusal(change?: Partial<ForwardRequest>): Promise<string>;
  /** One request over REST for this target; a redirect is not followed. */
  send(target: string, init?: RequestInit): Promise<Response>;
  stop(): Promise<void>;
}

export async function startRestChain(): Promise<RestChain> {
  const proxy = await startProxyFixture();
  const logged: string[] = [];
  // Nothing that is asked here needs the account service.
  const nowhere = { address: "127.0.0.1:1", tls: await testTls("gateway"), service: "account" };
  const account = createClient(AccountServiceDefinition, nowhere);
  const log = createLogger("gateway", "info", { write: (line) => logged.push(line) });
  const gatewayUrl = "http://127.0.0.1:7400";
  const app = buildGateway({ account, proxy: proxy.gateway, health: {}, gatewayUrl, log });
  await app.listen({ host: "127.0.0.1", port: 0 });
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const forward = (change: Partial<ForwardRequest> = {}) =>
    proxy.gateway.forward(forwardRequest(change), { token: proxy.token, deadlineMs: Date.now() + 20_000 });
  return {
    proxy,
    logged,
    forward,
    refusal: async (change) => {
      const error = await forward(change).catch((reason: unknown) => reason);
      return error instanceof StatusError ? error.code : `no refusal: ${JSON.stringify(error)}`;
    },
    send: (target, init = {}) => {
      const path = `/v1/connect/proj_1/proxy/${Buffer.from(target).toString("base64url")}`;
      const headers = { authorization: `Bearer ${proxy.token}`, "x-pd-environment": "development", ...init.headers };
      return fetch(`${url}${path}?external_user_id=user-1&account_id=apn_1`, { redirect: "manual", ...init, headers });
    },
    stop: async () => {
      app.server.closeAllConnections();
      await app.close();
      account.close();
      await proxy.stop();
    },
  };
}
