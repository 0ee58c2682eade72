// The settings that services have in common, to be spread into the table on top of a main.ts, and what they are read into.
import { parseCidrs } from "./addresses.ts";
import type { Config } from "./config.ts";
import type { EgressOptions } from "./egress.ts";
import type { EgressProxy } from "./egress-proxy.ts";
import type { TlsIdentity } from "./rpc.ts";

/** What every service is told. */
export const serviceSettings = {
  DEPUTY_DEVELOPMENT: {
    kind: "boolean",
    default: "false",
    help: "Allows what only development may have: gRPC reflection, the catalog's development apps, test targets.",
  },
  DEPUTY_LOG_LEVEL: { kind: "text", default: "info", help: "Lowest level logged: debug, info, warn, error, silent." },
  DEPUTY_TRUST_DOMAIN: {
    kind: "text",
    default: "deputy.internal",
    help: "Services are spiffe://<trust domain>/<service> in their certificates.",
  },
  DEPUTY_TLS_CA_FILE: { kind: "file", help: "Certificate of the authority that services trust, PEM." },
  DEPUTY_TLS_CERTIFICATE_FILE: { kind: "file", help: "This process's certificate, PEM." },
  DEPUTY_TLS_KEY_FILE: { kind: "secret", help: "The certificate's private key, PEM." },
} as const;

/** What a service that sends requests to the world is told. */
export const egressSettings = {
  DEPUTY_EGRESS_TEST_ALLOW: {
    kind: "list",
    default: "",
    help: "Development only: host:port of upstreams that may be on loopback.",
  },
  DEPUTY_EGRESS_PRIVATE_CIDRS: {
    kind: "list",
    default: "",
    help: "Private ranges, as 10.1.0.0/16, that names of upstreams may lead to; never loopback, link-local or metadata.",
  },
  DEPUTY_EGRESS_CA_FILE: { kind: "file", default: "", help: "Authorities trusted beside the system's, PEM." },
  DEPUTY_EGRESS_PROXY_URL: {
    kind: "url",
    default: "",
    help: "Proxy that all outgoing requests leave by (CONNECT), as http://10.1.0.5:3128 or https://...; HTTPS_PROXY and its like are ignored.",
  },
  DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE: { kind: "secret", default: "", help: "user:password for the egress proxy." },
} as const;

/** Where a service finds the others. */
export const accountAddress = {
  DEPUTY_ACCOUNT_ADDRESS: { kind: "address", default: "127.0.0.1:7401", help: "Where the account service is." },
} as const;
export const vaultAddress = {
  DEPUTY_VAULT_ADDRESS: { kind: "address", default: "127.0.0.1:7402", help: "Where the vault is." },
} as const;
export const gatewayUrl = {
  DEPUTY_GATEWAY_URL: { kind: "url", default: "http://127.0.0.1:7400", help: "Where browsers reach the gateway." },
} as const;

/** For services that know the apps. */
export const catalogDirectory = {
  DEPUTY_CATALOG_DIRECTORY: { kind: "path", default: "catalog", help: "Folder of the apps, one YAML file each." },
} as const;

/** The process's own certificate and those that it trusts. */
export function tlsIdentity(config: Config<typeof serviceSettings>): TlsIdentity {
  return {
    ca: config.DEPUTY_TLS_CA_FILE,
    certificate: config.DEPUTY_TLS_CERTIFICATE_FILE,
    key: config.DEPUTY_TLS_KEY_FILE,
    trustDomain: config.DEPUTY_TRUST_DOMAIN,
  };
}

/** How requests leave. Throws for a faulty range, and when production mode is asked for test targets. */
export function egressOptions(
  config: Config<typeof serviceSettings & typeof egressSettings>,
): EgressOptions & { readonly exemptTargets: readonly string[] } {
  const exemptTargets = config.DEPUTY_EGRESS_TEST_ALLOW;
  if (exemptTargets.length > 0 && !config.DEPUTY_DEVELOPMENT) {
    throw new Error("DEPUTY_EGRESS_TEST_ALLOW is for development: leave it out, or set DEPUTY_DEVELOPMENT=true.");
  }
  const allowedPrivateCidrs = config.DEPUTY_EGRESS_PRIVATE_CIDRS;
  checkCidrs("DEPUTY_EGRESS_PRIVATE_CIDRS", allowedPrivateCidrs);
  const extraCa = config.DEPUTY_EGRESS_CA_FILE;
  const proxy = egressProxy(config);
  return { exemptTargets, allowedPrivateCidrs, ...(extraCa !== "" && { extraCa }), ...(proxy && { proxy }) };
}

function egressProxy(config: Config<typeof egressSettings>): EgressProxy | undefined {
  const credentials = config.DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE;
  const isGiven = credentials.reveal() !== "";
  if (config.DEPUTY_EGRESS_PROXY_URL === "") {
    if (isGiven) throw new Error("DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE is for DEPUTY_EGRESS_PROXY_URL.");
    return undefined;
  }
  const url = new URL(config.DEPUTY_EGRESS_PROXY_URL);
  if (!["http:", "https:"].includes(url.protocol) || url.pathname !== "/" || url.search !== "" || url.hash !== "") {
    throw new Error("DEPUTY_EGRESS_PROXY_URL must be http://host:port or https://host:port.");
  }
  if (url.username !== "" || url.password !== "") {
    throw new Error("DEPUTY_EGRESS_PROXY_URL holds credentials: put them into DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE.");
  }
  if (isGiven && !/^[^:\p{Cc}]+:\P{Cc}*$/u.test(credentials.reveal())) {
    throw new Error("DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE must hold user:password on one line.");
  }
  return { url, ...(isGiven && { credentials }) };
}

function checkCidrs(name: string, ranges: readonly string[]): void {
  try {
    parseCidrs(ranges);
  } catch (error) {
    throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
  }
}
