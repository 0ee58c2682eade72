// `npm run demo`: the main job against the running stack, step by step with timings and without a browser: connect an
// account by OAuth, forward a request, let the token end, forward again, revoke all, be refused. Ends with status 1 when
// any step does not go as it must.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { readConfig } from "#libs/config.ts";
import { StatusError } from "#libs/errors.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type ConnectionFile, readConnection } from "./bootstrap.ts";
import { walkConnectPage } from "./connect-page.ts";
import { sandboxRequest } from "./sandbox-request.ts";
import { trustDomain } from "./state.ts";

/** Runs the demo. Throws at the first surprise. `print` gets one line per step. */
export async function runDemo(connection: ConnectionFile, print: (line: string) => void): Promise<void> {
  const { project_id: projectId, gateway_url: gateway, sandbox } = connection;
  const ca = readFileSync(connection.ca_file, "utf8");
  const tls = { ca, trustDomain };
  const account = createClient(AccountServiceDefinition, { address: connection.grpc.account, tls, service: "account" });
  const proxy = createClient(ProxyServiceDefinition, { address: connection.grpc.proxy, tls, service: "proxy" });
  const ofSandbox = (path: string, body?: object) => sandboxRequest(new URL(path, sandbox.api_url), ca, body);
  const externalUserId = `demo-${Date.now()}`;
  const environment = Environment.DEVELOPMENT;
  const step = async <T>(what: string, work: () => Promise<readonly [outcome: string, value: T]>): Promise<T> => {
    const startMs = performance.now();
    const [outcome, value] = await work().catch((error: Error) => {
      throw new Error(`${what}: ${reasonOf(error)}`, { cause: error });
    });
    print(`${`${(performance.now() - startMs).toFixed(0)} ms`.padStart(8)}  ${what}: ${outcome}`);
    return value;
  };

  try {
    const token = await step("get an access token", async () => {
      const answer = await post(`${gateway}/v1/oauth/token`, {
        grant_type: "client_credentials",
        client_id: connection.client_id,
        client_secret: connection.client_secret,
      });
      expect(answer.token_type === "Bearer", `token_type is ${answer.token_type}`);
      return [`good for ${answer.expires_in} s`, String(answer.access_token)];
    });
    const call = () => ({ deadlineMs: Date.now() + 30_000, token });
    const headers = { authorization: `Bearer ${token}`, "x-pd-environment": connection.environment };

    const link = await step("create a connect token", async () => {
      const body = { external_user_id: externalUserId, app_id: sandbox.app };
      const answer = await post(`${gateway}/v1/connect/${projectId}/tokens`, body, headers);
      return [`for ${externalUserId}, until ${answer.expires_at}`, String(answer.connect_link_url)];
    });

    // The vault refreshes a token that has less than 5 s left, and so short a one at half its life: before that, it is good.
    const lifetimeSeconds = 8;
    await ofSandbox("/admin/access-token-seconds", { seconds: lifetimeSeconds });
    const accountId = await step("connect the sandbox account by OAuth", async () => {
      const answer = await walkConnectPage({ link, name: "Demo User", ca });
      expect(answer.status < 400, `the callback answered ${answer.status}: ${await answer.clone().text()}`);
      const { accounts } = await account.listAccounts({ projectId, environment, externalUserId }, call());
      expect(accounts.length === 1, `${accounts.length} accounts are connected`);
      return [`${accounts[0]?.id} (${accounts[0]?.name})`, accounts[0]?.id ?? ""];
    });

    const forward = async () => {
      const answer = await proxy.forward(
        {
          projectId,
          environment,
          externalUserId,
          accountId,
          method: "POST",
          url: "/echo/hello?x=1",
          body: Buffer.from("hi"),
        },
        call(),
      );
      const echo = JSON.parse(answer.body.toString());
      expect(answer.status === 200, `the sandbox answered ${answer.status}`);
      expect(echo.path.endsWith("/echo/hello") && echo.body === "hi", "the echo is not what was sent");
      return { fingerprint: String(echo.headers.authorization), refreshed: answer.refreshed };
    };
    const first = await step("forward a request over gRPC", async () => {
      const { fingerprint, refreshed } = await forward();
      expect(!refreshed, "a new token was refreshed");
      return [`200, credential ${fingerprint}`, fingerprint];
    });

    await step("let the access token end", async () => {
      await sleep(lifetimeSeconds * 1000);
      return [`after ${lifetimeSeconds} s`, undefined];
    });
    const second = await step("forward again, over gRPC", async () => {
      const { fingerprint, refreshed } = await forward();
      expect(fingerprint !== first, "the token was not refreshed");
      return [`200, refreshed ${refreshed ? "for this call" : "ahead of it"}, credential ${fingerprint}`, fingerprint];
    });
    await ofSandbox("/admin/access-token-seconds", { seconds: 3600 });

    await step("forward again, over REST", async () => {
      const target = Buffer.from(`${sandbox.api_url}/echo/rest`).toString("base64url");
      const query = `external_user_id=${externalUserId}&account_id=${accountId}`;
      const answer = await fetch(`${gateway}/v1/connect/${projectId}/proxy/${target}?${query}`, { headers });
      expect(answer.status === 200, `the gateway answered ${answer.status}: ${await answer.clone().text()}`);
      const { headers: sent } = (await answer.json()) as { headers: Record<string, string> };
      return [`200, credential ${sent.authorization}${sent.authorization === second ? ", the same" : ""}`, undefined];
    });

    const { revocationRequests: before } = await ofSandbox("/stats");
    await step("revoke every account of the user", async () => {
      const target = { $case: "externalUserId", value: externalUserId } as const;
      const receipts = [];
      for await (const { receipt } of account.revokeAllAccounts({ projectId, environment, target }, call())) {
        receipts.push(receipt);
      }
      expect(receipts.length === 1 && receipts[0]?.accountId === accountId, `${receipts.length} receipts came`);
      return [`1 receipt, destroyed ${receipts[0]?.destroyTime?.toISOString()}`, undefined];
    });
    await step("forward once more", async () => {
      const outcome = await forward().catch((error: unknown) => error);
      expect(outcome instanceof StatusError && outcome.reason === "ACCOUNT_REVOKED", "the request was not refused");
      return [`refused, ${outcome.code} ${outcome.reason}: ${outcome.message}`, undefined];
    });
    await step("wait for the provider to be told", async () => {
      const deadlineMs = Date.now() + 15_000;
      while ((await ofSandbox("/stats")).revocationRequests === before) {
        expect(Date.now() < deadlineMs, "the provider's revocation endpoint was not called within 15 s");
        await sleep(100);
      }
      return ["its revocation endpoint was called", undefined];
    });
  } finally {
    account.close();
    proxy.close();
  }
}

function expect(condition: boolean, surprise: string): asserts condition {
  if (!condition) throw new Error(surprise);
}

/** What a person can act on: of a request that failed, why it did. */
function reasonOf(error: Error): string {
  const { cause } = error;
  const reason = error.message === "fetch failed" && cause instanceof Error ? cause.message : error.message;
  return reason.includes("ECONNREFUSED") ? `${reason}. Is Deputy running? Start it with npm start.` : reason;
}

async function post(url: string, body: object, headers: Record<string, string> = {}): Promise<Record<string, unknown>> {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  expect(answer.ok, `POST ${url} answered ${answer.status}: ${await answer.clone().text()}`);
  return (await answer.json()) as Record<string, unknown>;
}

if (import.meta.main) {
  const { DEPUTY_STATE_DIRECTORY: directory } = readConfig({
    DEPUTY_STATE_DIRECTORY: { kind: "path", default: ".deputy", help: "The state directory of the running stack." },
  });
  try {
    await runDemo(await readConnection(`${directory}/connection.json`), (line) => console.log(line));
    console.log("The main job works.");
  } catch (error) {
    console.error((error as Error).message);
    process.exitCode = 1;
  }
}
