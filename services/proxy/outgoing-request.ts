// From what a caller asks for to what leaves: the form of the request, where it may go, and last of all the credential. Pure.
import { destinationJudge } from "#libs/destination.ts";
import type { EgressRequest } from "#libs/egress.ts";
import { invalidField } from "#libs/errors.ts";
import { type Denial, denialError, malformed } from "#libs/verdict.ts";
import { type Injection, injector } from "./injection.ts";
import { oncePer } from "./once-per.ts";

/** Of a request's body and of an answer's, where they are not streamed. */
export const maxBodyBytes = 8 * 1024 * 1024;
/** The longest that a request may take. */
export const maxTimeoutMs = 30_000;

const methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/** Methods that are sent without a body. */
export const bodilessMethods = ["GET", "HEAD"];

/** What a caller asks to be sent, for which account or with which credential. */
export interface RequestedCall {
  readonly externalUserId: string;
  readonly accountId: string;
  readonly method: string;
  readonly url: string;
  readonly headers: readonly { readonly name: string; readonly value: string }[];
  readonly body: Buffer;
  readonly timeoutMs: number;
  readonly inlineCredential?: unknown;
}

/** What a lease allows. */
export interface AllowedUse extends Injection {
  readonly baseUrl: string;
  readonly allowedDomains: readonly string[];
  readonly allowedPorts: readonly number[];
  readonly proxyEnabled: boolean;
  readonly absoluteUrlsAllowed: boolean;
}

/** What is sent, and where to. Holds the credential: never logged. */
export type OutgoingRequest = Pick<EgressRequest, "url" | "method" | "headers" | "body">;

/** Throws INVALID_ARGUMENT naming the field; the contract's own rules are not applied to requests this large. */
export function checkForm(request: RequestedCall): void {
  const { method, body, timeoutMs } = request;
  checkWhose(request);
  if (!methods.includes(method)) throw invalidField("method", `must be one of ${methods.join(", ")}`);
  if (request.url === "") throw invalidField("url", "is required: https://host/path, or a path that begins with /");
  if (body.length > 0 && bodilessMethods.includes(method)) throw invalidField("body", `is not sent with ${method}`);
  if (body.length > maxBodyBytes) throw invalidField("body", `has more than ${maxBodyBytes} bytes`);
  if (timeoutMs < 0 || timeoutMs > maxTimeoutMs) throw invalidField("timeout_ms", `must be 1 to ${maxTimeoutMs}`);
}

function checkWhose({ externalUserId, accountId, inlineCredential }: RequestedCall): void {
  if (inlineCredential !== undefined) {
    if (accountId !== "") throw invalidField("account_id", "is not given with an inline credential");
    return;
  }
  if (externalUserId === "") throw invalidField("external_user_id", "is required");
  if (accountId === "") throw invalidField("account_id", "is required");
}

/** Judges where a request may go, and puts the credential in. */
export type ComposeRequest = (
  use: AllowedUse,
  request: Pick<RequestedCall, "url" | "method" | "headers" | "body">,
) => OutgoingRequest;

/** Makes the one of this process. What is the same for all requests with a lease is made at the first of them. */
export function requestComposer(exemptTargets: readonly string[]): ComposeRequest {
  const prepared = oncePer((use: AllowedUse) => {
    const { baseUrl, allowedDomains, allowedPorts, proxyEnabled } = use;
    const judge = destinationJudge({ baseUrl, allowedDomains, allowedPorts, proxyEnabled, exemptTargets }, {});
    return { judge, inject: injector(use) };
  });
  return (use, { url, method, headers, body }) => {
    if (use.proxyEnabled && !use.absoluteUrlsAllowed && !url.startsWith("/")) {
      throw denialError(
        malformed("PATH_REQUIRED", "This app's host depends on the account: give a path that begins with /."),
      );
    }
    const { judge, inject } = prepared(use);
    const target = allowed(judge(url));
    const injected = allowed(
      inject(
        target.url,
        headers.map(({ name, value }) => [name, value] as const),
      ),
    );
    return { url: injected.url, headers: injected.headers, method, ...(body.length > 0 && { body }) };
  };
}

function allowed<Verdict extends { readonly kind: "allow" }>(verdict: Verdict | Denial): Verdict {
  if (verdict.kind === "deny") throw denialError(verdict);
  return verdict;
}
