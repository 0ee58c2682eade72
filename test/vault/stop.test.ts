// A vault process that is told to stop while a refresh is on its way, with its caller gone: the grant is stored before it ends.
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { startChild } from "../../dev/child.ts";
import { connectSandbox, letTokensEnd, startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { vault, sandbox } = stack.children;

test("stores a refresh that was on its way when SIGTERM came, and ends with status 0", async () => {
  // The process's end is expected here; to the stack it is a fault.
  stack.broken.catch(() => undefined);
  const accountId = await connectSandbox(stack, "stopped");
  const request = {
    projectId: stack.connection.project_id,
    environment: Environment.DEVELOPMENT,
    externalUserId: "stopped",
    accountId,
    method: "GET",
    url: "/echo/x",
  };
  await letTokensEnd(stack);
  // The provider stands still, so that its answer comes after the caller has left and the process was told to stop.
  sandbox.process.kill("SIGSTOP");
  try {
    const leaving = stack.proxy.forward(request, { ...stack.call(), deadlineMs: Date.now() + 1_000 });
    await expect(leaving).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    vault.process.kill("SIGTERM");
    // Longer than a server without calls takes to stop.
    await sleep(4_000);
    expect(vault.process.exitCode).toBeNull();
  } finally {
    sandbox.process.kill("SIGCONT");
  }
  const [status] = await once(vault.process, "exit");
  expect(status).toBe(0);
  // A new process goes on with what was stored: a grant whose answer was lost would be dead now.
  const next = startChild({
    name: "vault-next",
    file: "services/vault/main.ts",
    settings: stack.settings.vault,
    logDirectory: stack.state.logs,
    cacheDirectory: stack.state.compileCache,
  });
  try {
    const giveUpMs = Date.now() + 15_000;
    let answer: number | undefined;
    while (answer !== 200 && Date.now() < giveUpMs) {
      answer = (await stack.proxy.forward(request, stack.call()).catch(() => undefined))?.status;
      await sleep(200);
    }
    expect(answer).toBe(200);
  } finally {
    await next.stop();
  }
});
