// Who takes part in bench/proxy.ts, and how each is called.
import type { ContenderOptions } from "./proxy-contender.ts";
import type { LoadOrder } from "./proxy-load.ts";
import type { Neighbours } from "./proxy-neighbours.ts";
import { type BenchProcess, startBenchProcess, startExpressAxios, startNginx } from "./proxy-processes.ts";

/** One of them. */
export interface Contender {
  readonly name: string;
  /** Undefined where there is none between the load and the upstream. */
  readonly process: BenchProcess | undefined;
  readonly sizes: (size: number) => boolean;
  readonly inFlights: (inFlight: number) => boolean;
  order(size: number): Omit<LoadOrder, "size" | "inFlight" | "durationMs" | "maxRequests">;
}

const forwardPath = "/deputy.proxy.v1.ProxyService/Forward";
const warmAccounts = 100;

/** Starts all that this machine has, and says what it has not. */
export async function startContenders(
  directory: string,
  upstreamPort: number,
  { accountPort, vaultPort, token }: Neighbours,
): Promise<{ readonly contenders: readonly Contender[]; readonly left: readonly string[] }> {
  const always = () => true;
  const authorization = `Bearer ${token}`;
  const common = { directory, upstreamPort, accountPort, vaultPort, proxyPort: 0, processes: 1 };
  const start = (name: string, options: Pick<ContenderOptions, "kind"> & Partial<ContenderOptions>) =>
    startBenchProcess(
      "proxy-contender.ts",
      "server",
      [JSON.stringify({ ...common, ...options })],
      `${directory}/${name}.log`,
    );
  const grpc = (name: string, process: BenchProcess, accounts: number | "new", tls = false): Contender => ({
    name,
    process,
    sizes: tls || accounts === "new" ? (size) => size === 100 : always,
    inFlights: accounts === "new" ? (inFlight) => inFlight === 16 : always,
    order: () => ({
      protocol: "grpc",
      origin: tls ? `https://localhost:${process.tlsPort}` : `http://127.0.0.1:${process.port}`,
      path: forwardPath,
      headers: { authorization, "grpc-timeout": "20S" },
      accounts,
    }),
  });
  const http = (
    name: string,
    process: BenchProcess | undefined,
    origin: string,
    path = (size: number) => `/${size}`,
  ) => ({
    name,
    process,
    sizes: always,
    inFlights: always,
    order: (size: number) => ({
      protocol: "http" as const,
      origin,
      path: path(size),
      headers: { authorization, "x-pd-environment": "development" },
      accounts: 0,
    }),
  });

  const bare = await start("bare", { kind: "bare" });
  const proxy = await start("proxy", { kind: "proxy" });
  const gateway = await start("gateway", { kind: "gateway", proxyPort: proxy.tlsPort });
  const contenders: Contender[] = [
    http("a", undefined, `https://127.0.0.1:${upstreamPort}`),
    grpc("b", bare, warmAccounts),
    grpc("c", proxy, warmAccounts),
    grpc("b tls", bare, warmAccounts, true),
    grpc("c tls", proxy, warmAccounts, true),
    grpc("d", proxy, "new"),
  ];
  const left: string[] = [];
  const nginx = await startNginx(directory, upstreamPort);
  if (typeof nginx === "string") left.push(`e: ${nginx}`);
  else contenders.push(http("e", nginx, `http://127.0.0.1:${nginx.port}`));
  const express = await startExpressAxios(directory, upstreamPort);
  if (typeof express === "string") left.push(`f: ${express}`);
  else contenders.push(http("f", express, `http://127.0.0.1:${express.port}`));
  const restPath = (size: number) =>
    `/v1/connect/proj_bench/proxy/${Buffer.from(`/${size}`).toString("base64url")}?external_user_id=user-1&account_id=apn_0`;
  contenders.push(http("g", gateway, `http://127.0.0.1:${gateway.port}`, restPath));
  return { contenders, left };
}
