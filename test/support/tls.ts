// Certificates for tests that speak gRPC: one authority for the whole run, made once per test process.
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TlsIdentity } from "#libs/rpc.ts";
import { ensureCertificates } from "../../dev/certificates.ts";

const trustDomain = "test.deputy";
const services = ["account", "vault", "proxy", "gateway", "operator", "sandbox"] as const;

const files = ensureCertificates({ directory: mkdtempSync(join(tmpdir(), "deputy-tls-")), trustDomain, services });

/** The identity of a service, as a process would read it from its files. */
export async function testTls(service: (typeof services)[number]): Promise<TlsIdentity & { readonly key: string }> {
  const made = await files;
  const { certificateFile, keyFile } = made.services[service] ?? { certificateFile: "", keyFile: "" };
  const read = (file: string) => readFileSync(file, "utf8");
  return { ca: read(made.caFile), certificate: read(certificateFile), key: read(keyFile), trustDomain };
}
