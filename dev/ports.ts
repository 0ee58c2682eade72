// The ports of the local stack: fixed by default, so that what one copies from a terminal works tomorrow.
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

/** Ports that were free a moment ago, for tests. */
export async function freePorts(): Promise<Ports> {
  const names = Object.keys(listeners) as (keyof Ports)[];
  const ports = await Promise.all(names.map(() => listenOnce(0)));
  return Object.fromEntries(names.map((name, index) => [name, ports[index]])) as Ports;
}

async function listenOnce(port: number): Promise<number> {
  const server = createServer();
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : port;
}
