// The certificates of bench/proxy.ts's processes: made once, read by each from the directory that it is told.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { TlsIdentity } from "#libs/rpc.ts";
import { ensureCertificates } from "../dev/certificates.ts";

export const trustDomain = "bench.deputy";
/** The name that the upstream's certificate is good for. */
export const upstreamHost = "api.acme.com";

const services = ["account", "vault", "proxy", "gateway", "upstream"];

/** Makes them. */
export async function makeBenchTls(directory: string): Promise<void> {
  await ensureCertificates({ directory, trustDomain, services, hosts: [upstreamHost] });
}

/** The identity of one service. */
export function readBenchTls(directory: string, service: string): TlsIdentity {
  const read = (name: string) => readFileSync(join(directory, name), "utf8");
  return { ca: read("ca.pem"), certificate: read(`${service}.pem`), key: read(`${service}-key.pem`), trustDomain };
}
