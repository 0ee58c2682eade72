// Tries keys at the provider before they are stored: the app's probe request, with the keys put in as the proxy would, through
// the egress rules. Nothing is kept of the answer.
import type { CatalogApp } from "#libs/catalog.ts";
import { judgeDestination } from "#libs/destination.ts";
import { EgressError } from "#libs/egress-error.ts";
import { StatusError } from "#libs/errors.ts";
import { fillInjection } from "#libs/injection-templates.ts";
import { denialError } from "#libs/verdict.ts";
import { type ProviderAccess, readJson } from "./provider-http.ts";
import { valueAt } from "./token-answers.ts";

/** Tries one app's keys; throws FAILED_PRECONDITION `KEY_TEST_FAILED` when the provider refuses them. */
export type TryKeys = (app: CatalogApp, fields: Readonly<Record<string, string>>) => Promise<void>;

// The user waits.
const timeoutMs = 8_000;
const maxAnswerBytes = 256 * 1024;

/** Tries keys by way of this process's access to providers. An app without a probe request takes any. */
export function keyTester({ egress, exemptTargets, ...access }: ProviderAccess): TryKeys {
  return async (app, fields) => {
    const { probe, base_url, allowed_domains, allowed_ports } = app.proxy;
    if (probe === undefined) return;
    const { headers, query } = fillInjection(app, { fields });
    const rules = { baseUrl: base_url, allowedDomains: allowed_domains, allowedPorts: allowed_ports, exemptTargets };
    const target = judgeDestination(rules, fields, probe.path);
    if (target.kind === "deny") throw denialError(target);
    const url = new URL(target.url);
    for (const { name, value } of query) url.searchParams.set(name, value);
    const sent = headers.map(({ name, value }): [string, string] => [name, value]);
    const response = await egress
      .send({
        url,
        method: "GET",
        headers: [["accept", "application/json"], ...sent],
        totalTimeoutMs: Math.min(timeoutMs, access.timeoutMs ?? timeoutMs),
        maxBodyBytes: maxAnswerBytes,
      })
      .catch((error: unknown) => {
        throw error instanceof EgressError ? unreachable() : error;
      });
    if (response.status === 429 || response.status >= 500) throw unreachable();
    const isGood = response.status >= 200 && response.status < 300;
    const answer = probe.success_at === undefined ? {} : await readJson(new Response(new Uint8Array(response.body)));
    if (!isGood || (probe.success_at !== undefined && !valueAt(answer, probe.success_at))) throw refused();
  };
}

/** The words that existing clients know. */
function refused(): StatusError {
  const message = "Test request failed. Please verify your credentials and try again.";
  return new StatusError("FAILED_PRECONDITION", "KEY_TEST_FAILED", message);
}

function unreachable(): StatusError {
  return new StatusError("UNAVAILABLE", "PROVIDER_UNREACHABLE", "The provider cannot be asked about the keys now.");
}
