// The ports of the local stack: fixed by default, so that what one copies from a terminal works tomorrow.
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";

/** Each listener of the stack with its default port and the variable that changes it. */
export const listeners = {
  gateway: { port: 7400, variable: "DEPUTY_GATEWAY_PORT" },
  account: { port: 7401, variable: "DEPUTY_ACCOUNT_PORT" },
  vault: { port: 7402, variable: "DEPUTY_VAULT_PORT" },
  proxy: { port: 7403, variable: "DEPUTY_PROXY_PORT" },
  accountPublic: { port: 7411, variable: "DEPUTY_ACCOUNT_PUBLIC_PORT" },
  proxyPublic: { port: 7413, variable: "DEPUTY_PROXY_PUBLIC_PORT" },
  sandbox: { port: 7480, variable: "DEPUTY_SANDBOX_PORT" },
} as const;

/** A port for each listener. */
export type Ports = { readonly [Name in keyof typeof listeners]: number };

/** Throws one sentence when a port is taken. */
export async function requireFree(ports: Ports): Promise<void> {
  for (const [name, { variable }] of Object.entries(listeners)) {
    const port = ports[name as keyof Ports];
    await listenOnce(port).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EADDRINUSE" && error.code !== "EACCES") throw error;
      const fault = error.code === "EACCES" ? "may not be used by this user" : "is taken: is Deputy running already?";
      throw new Error(`Port ${port} ${fault} Set ${variable} to another port.`);
    });
  }
}

/** Ports for a stack of a test or a bench. */
export async function freePorts(): Promise<Ports> {
  const ports: [string, number][] = [];
  for (const name of Object.keys(listeners)) ports.push([name, await freePort()]);
  return Object.fromEntries(ports) as Ports;
}

// Linux gives the ports from 32768 on to outgoing connections and to listeners that ask for any.
const [firstPort, portsPerWorker, workers] = [12_000, 2_000, 10];
const ownPorts = firstPort + (Number(process.env.VITEST_POOL_ID ?? 0) % workers) * portsPerWorker;
let given = randomInt(portsPerWorker);

/**
 * A port that nothing listens at. It is below those that the system gives away itself, and each worker of a test run has a
 * range of its own: a port that is free now is still free when its listener starts, or starts again.
 */
export async function freePort(): Promise<number> {
  for (let tried = 0; tried < portsPerWorker; tried++) {
    const port = ownPorts + (given++ % portsPerWorker);
    const isFree = await listenOnce(port).then(
      () => true,
      () => false,
    );
    if (isFree) return port;
  }
  throw new Error(`No port from ${ownPorts} to ${ownPorts + portsPerWorker - 1} is free.`);
}

async function listenOnce(port: number): Promise<void> {
  const server = createServer();
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  server.close();
  await once(server, "close");
}
