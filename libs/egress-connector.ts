// Opens the TLS connections of egress.ts, to judged addresses only. The name is resolved once per connection, all answers are
// judged, and the socket dials out of exactly those answers: the lookup that the socket is given is the one that judges, so
// there is no second lookup for a rebinding name to answer otherwise. Certificate and server name stay those of the URL. Where
// the operator has an egress proxy, it is asked for exactly those answers too (egress-proxy.ts).
import { isIP, type LookupFunction } from "node:net";
import { createSecureContext, getCACertificates } from "node:tls";
import { buildConnector } from "undici";
import { type AddressRules, judgeAddresses, parseCidrs } from "./addresses.ts";
import { denied, EgressError } from "./egress-error.ts";
import { type EgressProxy, openTunnel } from "./egress-proxy.ts";
import { notReady } from "./verdict.ts";

/** All addresses of a host. */
export type Resolve = (host: string) => Promise<readonly string[]>;

/** How connections are opened. */
export interface ConnectorOptions {
  readonly resolve: Resolve;
  /** `host:port` whose addresses may be loopback. Development and tests only. */
  readonly exemptTargets: readonly string[];
  /** CIDR ranges that the operator opens. */
  readonly allowedPrivateCidrs: readonly string[];
  /** PEM certificates trusted beside the system's. */
  readonly extraCa: string | undefined;
  readonly connectTimeoutMs: number;
  /** Where all connections go through. */
  readonly proxy: EgressProxy | undefined;
}

/** A connector for undici. Throws a RangeError for a faulty CIDR range. */
export function openConnector(options: ConnectorOptions): buildConnector.connector {
  const { exemptTargets, resolve, connectTimeoutMs, proxy } = options;
  const privateRanges = parseCidrs(options.allowedPrivateCidrs);
  // Made once: reading the whole trust store again for each connection would cost milliseconds.
  const secureContext = createSecureContext({
    minVersion: "TLSv1.2",
    ...(options.extraCa === undefined ? {} : { ca: [...getCACertificates("default"), options.extraCa] }),
  });
  const dial = (rules: AddressRules) =>
    buildConnector({
      secureContext,
      // Said aloud, because an environment variable can turn the default off.
      rejectUnauthorized: true,
      lookup: judgingLookup(resolve, rules),
      timeout: connectTimeoutMs,
      allowH2: false,
    });
  const rules: AddressRules = { privateRanges };
  const exemptRules: AddressRules = { privateRanges, loopbackAllowed: true };
  const [dialJudged, dialExempt] = [dial(rules), dial(exemptRules)];

  return (target, callback) => {
    const host = target.hostname;
    const isExempt = exemptTargets.includes(`${isIP(host) === 6 ? `[${host}]` : host}:${target.port || "443"}`);
    if (target.protocol !== "https:") {
      callback(denied(notReady("PLAINTEXT_REFUSED", "Only https upstreams are dialled.")), null);
      return;
    }
    // A socket asks no lookup for an address literal.
    const literal = isIP(host) === 0 ? undefined : judgeAddresses([host], isExempt ? exemptRules : rules);
    if (literal?.kind === "deny") {
      callback(denied(literal), null);
      return;
    }
    const connect = isExempt ? dialExempt : dialJudged;
    const settle: buildConnector.Callback = (...[error, socket]) => {
      if (error === null) {
        callback(null, socket);
      } else {
        callback(connectFailure(error), null);
      }
    };
    if (proxy === undefined) {
      connect(target, settle);
      return;
    }
    const judge = () => judgedAddresses(resolve, host, isExempt ? exemptRules : rules);
    openTunnel({ proxy, secureContext, timeoutMs: connectTimeoutMs }, judge, Number(target.port || 443)).then(
      (httpSocket) => connect({ ...target, httpSocket }, settle),
      (error: Error) => settle(error, null),
    );
  };
}

async function judgedAddresses(resolve: Resolve, host: string, rules: AddressRules): Promise<readonly string[]> {
  const verdict = judgeAddresses(isIP(host) === 0 ? await resolve(host) : [host], rules);
  if (verdict.kind === "deny") throw denied(verdict);
  return verdict.addresses;
}

function judgingLookup(resolve: Resolve, rules: AddressRules): LookupFunction {
  return (host, { all }, callback) => {
    judgedAddresses(resolve, host, rules).then(
      (judged) => {
        const addresses = judged.map((address) => ({ address, family: isIP(address) }));
        const [first] = addresses;
        if (all === true || first === undefined) {
          callback(null, addresses);
        } else {
          callback(null, first.address, first.family);
        }
      },
      (error: unknown) => callback(error instanceof Error ? error : new Error("resolution failed"), []),
    );
  };
}

// The HTTP client keeps requests waiting on errors with some codes of its own; an error of ours always fails them.
function connectFailure(error: Error & { readonly code?: unknown }): EgressError {
  if (error instanceof EgressError) {
    return error;
  }
  const code = typeof error.code === "string" ? error.code : error.name;
  return code === "UND_ERR_CONNECT_TIMEOUT" || code === "ETIMEDOUT"
    ? new EgressError("timeout", "The upstream did not accept a connection in time.", false)
    : new EgressError("connect", `No connection to the upstream (${code}).`, false);
}
