// A proxy as a true process of its own, between the stand-ins of a proxy fixture: one whose memory and time can be measured.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import type { Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import type { ProxyFixture } from "../proxy/proxy-fixture.ts";
import { testTls } from "./tls.ts";

/** A proxy process at work. */
export interface ProxyProcess {
  readonly gateway: Client<typeof streamingProxyDefinition>;
  /** Bytes of memory that it holds now. Linux alone tells. */
  residentBytes(): number;
  /** Seconds of processor time that it has used. Linux alone tells. */
  cpuSeconds(): number;
  stop(): Promise<void>;
}

/** Starts one and waits until it serves. */
export async function startProxyProcess({ settings, upstream }: ProxyFixture): Promise<ProxyProcess> {
  const directory = mkdtempSync(join(tmpdir(), "deputy-proxy-"));
  const write = (file: string, text: string) => {
    writeFileSync(join(directory, file), text, { mode: 0o600 });
    return join(directory, file);
  };
  const tls = await testTls("proxy");
  const ports = await freePorts();
  const address = `127.0.0.1:${ports.proxy}`;
  const child = startChild({
    name: "proxy-process",
    file: "services/proxy/main.ts",
    settings: {
      DEPUTY_DEVELOPMENT: "true",
      DEPUTY_TRUST_DOMAIN: tls.trustDomain,
      DEPUTY_TLS_CA_FILE: write("ca.pem", tls.ca),
      DEPUTY_TLS_CERTIFICATE_FILE: write("certificate.pem", tls.certificate ?? ""),
      DEPUTY_TLS_KEY_FILE: write("key.pem", tls.key ?? ""),
      DEPUTY_PROXY_INTERNAL_ADDRESS: address,
      DEPUTY_PROXY_PUBLIC_ADDRESS: `127.0.0.1:${ports.proxyPublic}`,
      DEPUTY_EGRESS_CA_FILE: write("upstream-ca.pem", upstream.ca),
      ...settings,
    },
    logDirectory: directory,
    cacheDirectory: join(directory, "compile-cache"),
  });
  const stat = (file: string) => readFileSync(`/proc/${child.process.pid}/${file}`, "utf8");
  const stop = async () => {
    gateway.close();
    await child.stop();
    rmSync(directory, { recursive: true, force: true });
  };
  const gateway = createClient(streamingProxyDefinition, { address, tls: await testTls("gateway"), service: "proxy" });
  const deadlineMs = performance.now() + 30_000;
  while (!readFileSync(child.logFile, "utf8").includes('"the vault is watched"')) {
    if (child.process.exitCode !== null || performance.now() > deadlineMs) {
      const log = readFileSync(child.logFile, "utf8");
      await stop();
      throw new Error(`the proxy does not serve:\n${log}`);
    }
    await sleep(30);
  }
  return {
    gateway,
    residentBytes: () => Number(/^VmRSS:\s+(\d+) kB/m.exec(stat("status"))?.[1]) * 1024,
    // User and system time in hundredths of a second, behind the process's name in parentheses.
    cpuSeconds() {
      const fields = stat("stat").split(") ")[1]?.split(" ") ?? [];
      return (Number(fields[11]) + Number(fields[12])) / 100;
    },
    stop,
  };
}
