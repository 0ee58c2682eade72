// Who takes part in bench/proxy.ts, and how each is called.
import type { ContenderOptions } from "./proxy-contender.ts";
import type { LoadOrder } from "./proxy-load.ts";
import type { Neighbours } from "./proxy-neighbours.ts";
import { type BenchProcess, startBenchProcess, startExpressAxios, startNginx } from "./proxy-processes.ts";

/** One of them. */
export interface Contender {
  readonly name: string;
  /** Those between the load and the upstream. */
  readonly servers: readonly BenchProcess[];
  takesPart(size: number, inFlight: number): boolean;
  order(size: number): Omit<LoadOrder, "size" | "inFlight" | "durationMs" | "maxRequests">;
}

const forwardPath = "/deputy.proxy.v1.ProxyService/Forward";
// In a segment of half a second these few renew as often as a hundred do in use without a break: a hundred would all have aged
// while it was the others' turn, and one segment would pay for the whole round.
const warmAccounts = 4;

/** Starts all that this machine has, and says what it has not. `sides` tells where all but the proxy and the bare one take part. */
export async function startContenders(
  directory: string,
  upstreamPort: number,
  { accountPort, vaultPort, token }: Neighbours,
  sides: (size: number, inFlight: number) => boolean,
): Promise<{ readonly contenders: readonly Contender[]; readonly left: readonly string[] }> {
  const authorization = `Bearer ${token}`;
  const common = { directory, upstreamPort, accountPort, vaultPort, proxyPort: 0 };
  const start = (name: string, options: Pick<ContenderOptions, "kind"> & Partial<ContenderOptions>) => {
    const parameters = [JSON.stringify({ ...common, ...options })];
    return startBenchProcess("proxy-contender.ts", "server", parameters, `${directory}/${name}.log`);
  };
  const grpc = (
    name: string,
    servers: readonly BenchProcess[],
    takesPart: Contender["takesPart"],
    { accounts = warmAccounts, isTls = false }: { accounts?: number | "new"; isTls?: boolean } = {},
  ): Contender => ({
    name,
    servers,
    takesPart,
    order: () => ({
      protocol: "grpc",
      origins: servers.map(({ port, tlsPort }) =>
        isTls ? `https://localhost:${tlsPort}` : `http://127.0.0.1:${port}`,
      ),
      path: forwardPath,
      headers: { authorization, "grpc-timeout": "20S" },
      accounts,
    }),
  });
  const http = (
    name: string,
    servers: readonly BenchProcess[],
    origin: string,
    path = (size: number) => `/${size}`,
  ): Contender => ({
    name,
    servers,
    takesPart: sides,
    order: (size) => ({
      protocol: "http",
      origins: [origin],
      path: path(size),
      headers: { authorization, "x-pd-environment": "development" },
      accounts: 0,
    }),
  });

  const bare = await start("bare", { kind: "bare" });
  const proxy = await start("proxy", { kind: "proxy" });
  const second = await start("proxy-2", { kind: "proxy" });
  const gateway = await start("gateway", { kind: "gateway", proxyPort: proxy.tlsPort });
  const small = (size: number) => size === 100;
  const smallMany = (size: number, inFlight: number) => size === 100 && inFlight > 1;
  const contenders: Contender[] = [
    http("a", [], `https://127.0.0.1:${upstreamPort}`),
    grpc("b", [bare], () => true),
    grpc("c", [proxy], () => true),
    grpc("b tls", [bare], small, { isTls: true }),
    grpc("c tls", [proxy], small, { isTls: true }),
    grpc("2c", [proxy, second], smallMany),
    grpc("d", [proxy], (size, inFlight) => size === 100 && inFlight === 16, { accounts: "new" }),
  ];
  const left: string[] = [];
  const nginx = await startNginx(directory, upstreamPort);
  if (typeof nginx === "string") left.push(`e: ${nginx}`);
  else contenders.push(http("e", [nginx], `http://127.0.0.1:${nginx.port}`));
  const express = await startExpressAxios(directory, upstreamPort);
  if (typeof express === "string") left.push(`f: ${express}`);
  else contenders.push(http("f", [express], `http://127.0.0.1:${express.port}`));
  const restPath = (size: number) =>
    `/v1/connect/proj_bench/proxy/${Buffer.from(`/${size}`).toString("base64url")}?external_user_id=user-1&account_id=apn_0`;
  contenders.push(http("g", [gateway], `http://127.0.0.1:${gateway.port}`, restPath));
  return { contenders, left };
}
