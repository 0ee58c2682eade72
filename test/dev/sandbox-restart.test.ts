// What the sandbox provider keeps over a restart, and how it lives as a process of its own.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { request as requestHttps } from "node:https";
import { join } from "node:path";
import { expect, test } from "vitest";
import { ensureCertificates } from "../../dev/certificates.ts";
import { freePort } from "../../dev/ports.ts";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import {
  authorizationUrl,
  basic,
  call,
  cleanups,
  clientId,
  clientSecret,
  connect,
  expectInvalidGrant,
  newDirectory,
  redirectUri,
  refresh,
  refreshWell,
  startSandbox,
  type Tokens,
} from "../support/sandbox.ts";

test("grants, tokens, reuse detection and signing keys survive a restart in a file for the owner alone", async () => {
  const directory = newDirectory();
  const storeFile = join(directory, "state", "sandbox.json");
  const port = await freePort();
  const before = await startSandbox({ storeFile, port });
  const first = await connect(before);
  const second = await refreshWell(before, first.refresh_token);
  const jwks = await (await fetch(`${before.url}/jwks`)).json();
  await before.stop();
  // What the browser's sign-in left behind ends before the tokens do, and they do not depend on it.
  const state = JSON.parse(readFileSync(storeFile, "utf8"));
  const sessions = Object.keys(state.records).filter((key) => key.startsWith("Session:"));
  expect(sessions).toHaveLength(1);
  for (const key of sessions) delete state.records[key];
  writeFileSync(storeFile, JSON.stringify(state));
  expect(statSync(storeFile).mode & 0o777).toBe(0o600);
  expect(readdirSync(join(directory, "state"))).toEqual(["sandbox.json"]);

  const after = await startSandbox({ storeFile, port });
  expect(await (await fetch(`${after.url}/jwks`)).json()).toEqual(jwks);
  expect((await call(after, "/me", second.access_token)).status).toBe(200);
  const third = await refreshWell(after, second.refresh_token);
  expect((await call(after, "/me", third.access_token)).status).toBe(200);
  await expectInvalidGrant(await refresh(after, first.refresh_token));
  await expectInvalidGrant(await refresh(after, third.refresh_token));
});

test("a damaged state file is a clear error that does not quote it", async () => {
  const storeFile = join(newDirectory(), "sandbox.json");
  writeFileSync(storeFile, '{"keys": SECRET');
  const failure = await startSandbox({ storeFile }).catch((error: Error) => error.message);
  expect(failure).toContain(`${storeFile} is damaged`);
  expect(failure).not.toContain("SECRET");
});

interface Process {
  readonly url: string;
  readonly output: () => string;
  stop(signal: NodeJS.Signals): Promise<number | null>;
}

async function startProcess(environment: Record<string, string>): Promise<Process> {
  const child = spawn(process.execPath, ["dev/sandbox-provider.ts"], {
    env: { PATH: process.env.PATH, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const exited = once(child, "exit");
  let output = "";
  cleanups.push(() => child.kill("SIGKILL"));
  const url = await new Promise<string>((resolve, reject) => {
    const read = (chunk: Buffer) => {
      output += chunk;
      const announced = /^sandbox provider at (\S+)$/m.exec(output)?.[1];
      if (announced !== undefined) resolve(announced);
    };
    child.stdout.on("data", read);
    child.stderr.on("data", read);
    exited.then(() => reject(new Error(`the process ended: ${output}`)));
  });
  async function stop(signal: NodeJS.Signals): Promise<number | null> {
    child.kill(signal);
    const [code] = await exited;
    return code;
  }
  return { url, output: () => output, stop };
}

test("as a process it speaks https, keeps a rotated token over kill -9, and ends well on SIGTERM", async () => {
  const directory = newDirectory();
  const { caFile, services } = await ensureCertificates({
    directory,
    trustDomain: "deputy.test",
    services: ["sandbox"],
  });
  const secretFile = join(directory, "client-secret");
  writeFileSync(secretFile, `${clientSecret}\n`);
  const ca = readFileSync(caFile, "utf8");
  const environment = {
    DEPUTY_SANDBOX_PORT: "0",
    DEPUTY_SANDBOX_CLIENT_ID: clientId,
    DEPUTY_SANDBOX_CLIENT_SECRET_FILE: secretFile,
    DEPUTY_SANDBOX_REDIRECT_URIS: `http://127.0.0.1:9/other,${redirectUri}`,
    DEPUTY_SANDBOX_STATE_DIRECTORY: join(directory, "state"),
    DEPUTY_SANDBOX_TLS_KEY_FILE: services.sandbox?.keyFile ?? "",
    DEPUTY_SANDBOX_TLS_CERTIFICATE_FILE: services.sandbox?.certificateFile ?? "",
  };
  const tokenRequest = (url: string, form: Record<string, string>) =>
    new Promise<Tokens>((resolve, reject) => {
      const headers = { authorization: basic, "content-type": "application/x-www-form-urlencoded" };
      requestHttps(`${url}/token`, { ca, method: "POST", headers, agent: false }, async (response) => {
        const text = (await response.setEncoding("utf8").toArray()).join("");
        if (response.statusCode === 200) resolve(JSON.parse(text));
        else reject(new Error(text));
      })
        .on("error", reject)
        .end(new URLSearchParams(form).toString());
    });

  const first = await startProcess(environment);
  expect(first.url).toMatch(/^https:\/\/127\.0\.0\.1:\d+$/);
  const verifier = "v".repeat(43);
  const back = await answerConsent({ authorizationUrl: authorizationUrl(first.url, verifier), decision: "allow", ca });
  const code = new URL(back).searchParams.get("code") ?? "";
  const form = { grant_type: "authorization_code", code, redirect_uri: redirectUri, code_verifier: verifier };
  const connected = await tokenRequest(first.url, form);
  const rotated = await tokenRequest(first.url, {
    grant_type: "refresh_token",
    refresh_token: connected.refresh_token,
  });
  await first.stop("SIGKILL");

  const second = await startProcess(environment);
  const again = await tokenRequest(second.url, { grant_type: "refresh_token", refresh_token: rotated.refresh_token });
  expect(again.access_token).not.toBe(rotated.access_token);
  expect(await second.stop("SIGTERM")).toBe(0);
  for (const { output } of [first, second]) {
    for (const secret of [clientSecret, connected.refresh_token, rotated.access_token]) {
      expect(output()).not.toContain(secret);
    }
  }
});
