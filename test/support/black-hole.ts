// Runs inside a network namespace of its own: a public address whose packets are dropped without a word, so that the first of a
// connection is never answered. Sends there with little time in all, and with more time than connecting may take, and prints
// how each ended as JSON. Nothing leaves the namespace. Started by black-hole.test.ts.
import { execFileSync } from "node:child_process";
import { openEgress } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";

/** How one request ended. */
export interface BlackHoleEnd {
  readonly code: string;
  readonly reason: string;
  readonly message: string;
  readonly sent: boolean;
  readonly tookMs: number;
}

/** What is printed: of whole answers, and of streams. */
export type BlackHoleReport = Readonly<Record<"shortOfTime" | "connecting" | "streamed", BlackHoleEnd>>;

const address = "93.184.215.14";

/** A link whose other end is nobody: a neighbour is written down for the address, and drops what comes for it. */
function openNamespace(): void {
  const ip = (...words: string[]) => execFileSync("ip", words);
  ip("link", "set", "lo", "up");
  ip("link", "add", "hole", "type", "veth", "peer", "name", "nobody");
  for (const end of ["hole", "nobody"]) ip("link", "set", end, "up");
  ip("address", "add", "198.51.100.1/32", "dev", "hole");
  ip("route", "add", `${address}/32`, "dev", "hole");
  ip("neighbour", "add", address, "lladdr", "02:00:00:00:00:01", "dev", "hole", "nud", "permanent");
}

type Ask = "send" | "open";

async function ask(how: Ask, connectTimeoutMs: number, totalTimeoutMs: number): Promise<BlackHoleEnd> {
  const egress = openEgress({ resolve: async () => [address], connectTimeoutMs });
  const request = { url: new URL("https://api.acme.com/x"), method: "GET", headers: [], totalTimeoutMs };
  const startMs = performance.now();
  try {
    await (how === "send" ? egress.send({ ...request, maxBodyBytes: 1 }) : egress.open(request));
    throw new Error("something answered");
  } catch (error) {
    if (!(error instanceof EgressError)) throw error;
    const tookMs = performance.now() - startMs;
    const { code, reason, message } = egressStatusError(error, "GET");
    return { code, reason, message, sent: error.sent, tookMs };
  } finally {
    await egress.close();
  }
}

openNamespace();
const report: BlackHoleReport = {
  shortOfTime: await ask("send", 5_000, 700),
  connecting: await ask("send", 900, 5_000),
  streamed: await ask("open", 5_000, 700),
};
process.stdout.write(JSON.stringify(report), () => process.exit(0));
