// How the vault speaks to providers: through the egress rules, without redirects, with small answers, in bounded time. It
// gives oauth4webapi a `fetch` and reads JSON answers; what an answer means is judged by token-answers.ts.
import type { CatalogApp } from "#libs/catalog.ts";
import { judgeUrl } from "#libs/destination.ts";
import type { Egress } from "#libs/egress.ts";
import { denied } from "#libs/egress-error.ts";
import { expandBaseUrl } from "#libs/templates.ts";
import { denialError } from "#libs/verdict.ts";

/** What a token request may take in all, below the 30 s after which another process takes a refresh for lost. */
export const totalTimeoutMs = 20_000;
const maxAnswerBytes = 256 * 1024;

// Statuses that by their definition have no body; `Response` throws when it is given one.
const bodylessStatuses: readonly number[] = [204, 205, 304];

/** How providers are reached. */
export interface ProviderAccess {
  readonly egress: Egress;
  /** `host:port` of development providers. */
  readonly exemptTargets: readonly string[];
  /** Tests shorten it. */
  readonly timeoutMs?: number;
}

/** One request to a provider. */
export interface ProviderRequest {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: URLSearchParams | string;
}

/** Sends one request to one of an app's endpoints. Rejects with an EgressError, which says whether anything was sent. */
export async function sendToProvider(
  { egress, exemptTargets, timeoutMs = totalTimeoutMs }: ProviderAccess,
  app: CatalogApp,
  url: string,
  request: ProviderRequest,
): Promise<Response> {
  const target = judgeUrl(url, { exemptTargets, allowedPorts: app.proxy.allowed_ports });
  if (target.kind === "deny") throw denied(target);
  const { status, headers, body } = await egress.send({
    url: target.url,
    method: request.method,
    headers: Object.entries(request.headers),
    ...(request.body && { body: Buffer.from(request.body.toString()) }),
    totalTimeoutMs: timeoutMs,
    maxBodyBytes: maxAnswerBytes,
  });
  const content = bodylessStatuses.includes(status) ? null : new Uint8Array(body);
  return new Response(content, { status, headers: headers.map(([name, value]) => [name, value]) });
}

/** An endpoint with the account's fields in it. Throws what the rules say of a field that does not fit. */
export function endpointUrl(template: string, fields: Readonly<Record<string, string>>): string {
  const expanded = expandBaseUrl(template, fields);
  if (expanded.kind === "deny") throw denialError(expanded);
  return expanded.text;
}

/** The answer as JSON; undefined when it is none. */
export async function readJson(response: Response): Promise<unknown> {
  try {
    return JSON.parse(await response.text());
  } catch {
    return undefined;
  }
}
