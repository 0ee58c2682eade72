// Runs inside a network namespace of its own, where metadata, private, loopback and one public address are this machine:
// sends every egress vector through the rules and the sender while names resolve to each of the canary addresses, and prints
// what was reached as JSON. Nothing leaves the namespace, which has no other interface. Started by egress-canaries.test.ts.
import { execFileSync } from "node:child_process";
import { createServer, isIPv6, type LookupFunction } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Agent, fetch } from "undici";
import { judgeDestination } from "#libs/destination.ts";
import { openEgress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { decodeTargetUrl } from "#libs/encoded-url.ts";
import { readUnitVectors, rulesOf, type Vector } from "../../dev/vectors.ts";
import { startTlsUpstream, upstreamHost } from "./tls-upstream.ts";

/** What the run prints. */
export interface CanaryReport {
  /** `address:port` of each connection that the rules and the sender let through, but for the public address. */
  readonly hits: readonly string[];
  readonly publicHits: number;
  /** The same when the rules are left out and the sender alone stands between. */
  readonly hitsOfSender: readonly string[];
  /** The same for a fetch of `new URL(input, base)`. */
  readonly hitsOfNaive: readonly string[];
  readonly judged: number;
  readonly allowed: number;
  /** How the requests that the rules allowed ended, by kind. */
  readonly ends: Readonly<Record<string, number>>;
  /** Of a name that turns into each of the canaries: how each of three requests ended, and the lookups until then. */
  readonly rebinding: readonly (readonly string[])[];
}

const canaries = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254"];
const publicAddress = "93.184.215.14";
const ports = [22, 80, 443, 5432, 6379, 8080, 8443];

const reached: string[] = [];
const take = () => reached.splice(0);

function openNamespace(): void {
  const ip = (...words: string[]) => execFileSync("ip", words);
  ip("link", "set", "lo", "up");
  for (const address of [...canaries.filter((canary) => !["127.0.0.1", "::1"].includes(canary)), publicAddress]) {
    ip(
      "address",
      "add",
      `${address}/${isIPv6(address) ? 128 : 32}`,
      "dev",
      "lo",
      ...(isIPv6(address) ? ["nodad"] : []),
    );
  }
}

/** On every address of the namespace, so that a hit on one that nobody thought of counts as well. */
async function listen(): Promise<void> {
  for (const port of ports) {
    const server = createServer((socket) => {
      reached.push(`${socket.localAddress}:${port}`);
      socket.destroy();
    });
    await new Promise<void>((resolve) => server.listen(port, "::", resolve));
    server.unref();
  }
}

async function send(url: URL, answer: string): Promise<string> {
  const egress = openEgress({ resolve: async () => [answer], connectTimeoutMs: 1000 });
  try {
    const { status } = await egress.send({ url, method: "GET", headers: [], totalTimeoutMs: 2000, maxBodyBytes: 1000 });
    return String(status);
  } catch (error) {
    return error instanceof EgressError ? error.kind : String(error);
  } finally {
    await egress.close();
  }
}

function judge(vector: Vector, input: string): URL | undefined {
  const text = vector.category === "base64" ? decodeTargetUrl(input) : { kind: "allow" as const, text: input };
  if (text.kind === "deny") return undefined;
  const verdict = judgeDestination(rulesOf(vector), vector.config.custom_fields ?? {}, text.text);
  return verdict.kind === "allow" ? verdict.url : undefined;
}

async function fetchNaively(url: URL, answer: string): Promise<void> {
  const lookup: LookupFunction = (_host, _options, done) =>
    done(null, [{ address: answer, family: isIPv6(answer) ? 6 : 4 }]);
  const dispatcher = new Agent({ connect: { lookup, timeout: 1000 } });
  await fetch(url, { dispatcher, signal: AbortSignal.timeout(2000) }).catch(() => undefined);
  await dispatcher.destroy();
}

/** A name that is public at first and a canary from then on: over one connection, and a minute later by the process's clock. */
async function rebind(canary: string): Promise<readonly string[]> {
  const upstream = await startTlsUpstream(publicAddress);
  const url = new URL(`https://${upstreamHost}:${upstream.port}/`);
  upstream.answerWith("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
  let asked = 0;
  const resolve = async () => [asked++ === 0 ? publicAddress : canary];
  const egress = openEgress({ resolve, extraCa: upstream.ca });
  const ask = () =>
    egress.send({ url, method: "GET", headers: [], totalTimeoutMs: 2000, maxBodyBytes: 1000 }).then(
      ({ status }) => String(status),
      (error: unknown) => (error instanceof EgressError ? error.kind : String(error)),
    );
  // The connection is idle a moment after its answer, and too old at the last request.
  const ends: string[] = [];
  const now = performance.now.bind(performance);
  for (const aheadMs of [0, 0, 61_000]) {
    await sleep(50);
    performance.now = () => now() + aheadMs;
    ends.push(`${await ask()} after ${asked}`);
  }
  performance.now = now;
  await egress.close();
  await upstream.close();
  return ends;
}

async function run(): Promise<CanaryReport> {
  openNamespace();
  await listen();
  const vectors = readUnitVectors(join(import.meta.dirname, "../vectors/egress.json"));
  const asked = vectors.flatMap((vector) =>
    typeof vector.input === "string" ? [{ vector, input: vector.input }] : [],
  );
  const targets = asked.filter(({ vector }) => vector.category !== "ip-class");
  const [ends, rebinding]: [Record<string, number>, (readonly string[])[]] = [{}, []];
  let allowed = 0;
  for (const { vector, input } of targets) {
    const url = judge(vector, input);
    if (url === undefined) continue;
    allowed += 1;
    for (const answer of [...canaries, ...Object.values(vector.config.dns ?? {}).flat()]) {
      const end = await send(url, answer);
      ends[end] = (ends[end] ?? 0) + 1;
    }
  }
  for (const canary of canaries) rebinding.push(await rebind(canary));
  const all = take();
  const hits = all.filter((hit) => !hit.includes(publicAddress));
  const naive = targets.flatMap(({ vector, input }) => URL.parse(input, vector.config.base_proxy_target_url) ?? []);
  for (const url of naive) for (const canary of canaries) await send(url, canary);
  const bad = asked.filter(({ vector }) => vector.category === "ip-class" && vector.expect === "deny");
  for (const { input } of bad) await send(new URL("https://a.evil.com/"), input);
  const hitsOfSender = take();
  for (const url of naive) await fetchNaively(url, canaries[naive.indexOf(url) % canaries.length] ?? "");
  const publicHits = all.length - hits.length;
  return { hits, publicHits, hitsOfSender, hitsOfNaive: take(), judged: targets.length, allowed, ends, rebinding };
}

process.stdout.write(JSON.stringify(await run()), () => process.exit(0));
