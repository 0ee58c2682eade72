// Runs a file of egress vectors against the pure rules: `npm run --silent vectors -- FILE`. Vectors of other levels describe
// behaviour on the wire and have tests of their own. Prints each miss, then the count; the exit code is 1 on a miss.
import { readFileSync } from "node:fs";
import { judgeAddresses, parseCidrs } from "#libs/addresses.ts";
import { type DestinationRules, judgeDestination } from "#libs/destination.ts";
import { decodeTargetUrl } from "#libs/encoded-url.ts";
import { judgeRequestHeaders } from "#libs/request-headers.ts";
import type { Denial } from "#libs/verdict.ts";

/** One case: what is asked for under which configuration, and the verdict that the rules must give. */
export interface Vector {
  readonly id: string;
  readonly category: string;
  readonly level: string;
  readonly input: string | { readonly name: string; readonly value: string };
  readonly config: {
    readonly base_proxy_target_url?: string;
    readonly allowed_domains?: readonly string[];
    readonly allowed_ports?: readonly number[];
    readonly allow_http?: boolean;
    readonly proxy_enabled?: boolean;
    readonly custom_fields?: Readonly<Record<string, unknown>>;
    readonly injected_headers?: readonly string[];
    readonly dns?: Readonly<Record<string, readonly string[]>>;
    readonly egress_allow_cidrs?: readonly string[];
  };
  readonly expect: "allow" | "deny";
  readonly resolved?: string;
  readonly connect_to?: readonly string[];
  /** The class of the address, for vectors that ask for one. */
  readonly class?: string;
  readonly code?: string;
}

/** The vectors of a file that the pure rules can answer. */
export function readUnitVectors(path: string): readonly Vector[] {
  const { vectors } = JSON.parse(readFileSync(path, "utf8")) as { vectors: readonly Vector[] };
  return vectors.filter((vector) => vector.level === "unit");
}

/** The verdict of the rules as one line, and the line that the vector asks for. They are equal when the vector passes. */
export function runVector(vector: Vector): { readonly got: string; readonly expected: string } {
  const verdict = judge(vector);
  if (verdict.kind === "deny") {
    return { got: `deny ${verdict.code}`, expected: expectedLine(vector) };
  }
  const addresses = vector.connect_to === undefined ? "" : ` at ${verdict.addresses?.join(",")}`;
  return {
    got: `allow ${vector.resolved === undefined ? "" : verdict.resolved}${addresses}`,
    expected: expectedLine(vector),
  };
}

/** The app's entry of a vector. */
export function rulesOf({ config }: Pick<Vector, "config">): DestinationRules {
  return {
    baseUrl: config.base_proxy_target_url ?? "",
    allowedDomains: config.allowed_domains ?? [],
    allowedPorts: config.allowed_ports ?? [],
    plaintextAllowed: config.allow_http ?? false,
    proxyEnabled: config.proxy_enabled ?? true,
  };
}

function expectedLine(vector: Vector): string {
  const addresses = vector.connect_to === undefined ? "" : ` at ${vector.connect_to.join(",")}`;
  return vector.expect === "deny" ? `deny ${vector.code}` : `allow ${vector.resolved ?? ""}${addresses}`;
}

interface Allowed {
  readonly kind: "allow";
  readonly resolved: string;
  readonly addresses?: readonly string[];
}

function judge({ category, input, config }: Vector): Allowed | Denial {
  if (typeof input !== "string") {
    const verdict = judgeRequestHeaders([[input.name, input.value]], config.injected_headers ?? []);
    return verdict.kind === "deny"
      ? verdict
      : { kind: "allow", resolved: verdict.headers.map((h) => h.join(": ")).join() };
  }
  if (category === "ip-class") {
    const verdict = judgeAddresses([input], { privateRanges: parseCidrs(config.egress_allow_cidrs ?? []) });
    return verdict.kind === "deny" ? verdict : { kind: "allow", resolved: input };
  }
  const text = category === "base64" ? decodeTargetUrl(input) : { kind: "allow" as const, text: input };
  if (text.kind === "deny") {
    return text;
  }
  const verdict = judgeDestination(rulesOf({ config }), config.custom_fields ?? {}, text.text);
  if (verdict.kind === "deny" || config.dns === undefined) {
    return verdict.kind === "deny" ? verdict : { kind: "allow", resolved: verdict.url.href };
  }
  const addresses = judgeAddresses(config.dns[verdict.url.hostname] ?? [], {
    privateRanges: parseCidrs(config.egress_allow_cidrs ?? []),
  });
  return addresses.kind === "deny"
    ? addresses
    : { kind: "allow", resolved: verdict.url.href, addresses: addresses.addresses };
}

function main(path: string | undefined): number {
  if (path === undefined) {
    console.error("usage: npm run --silent vectors -- FILE");
    return 2;
  }
  const vectors = readUnitVectors(path);
  let failed = 0;
  for (const vector of vectors) {
    const { got, expected } = runVector(vector);
    if (got !== expected) {
      failed += 1;
      console.log(`${vector.id}: got ${got}, expected ${expected}`);
    }
  }
  console.log(`${vectors.length - failed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

if (import.meta.main) {
  process.exitCode = main(process.argv[2]);
}
