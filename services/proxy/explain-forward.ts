// ExplainForward: what Forward would send, or which rule refuses it. Nothing is sent, and the credential is taken out before
// the request is put together, so that no answer can hold it. What only a connection can tell (the upstream's addresses, its
// certificate) is not judged here.
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import type { ExplainForwardRequest, ExplainForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import type { InjectedValue } from "./injection.ts";
import { type LeasingCollaborators, withLease } from "./lease-client.ts";
import { type AllowedUse, type ComposeRequest, checkForm, type RequestedCall } from "./outgoing-request.ts";

/** What explaining works with. */
export interface ExplainCollaborators extends LeasingCollaborators {
  readonly compose: ComposeRequest;
}

/** In place of each injected value. */
const redacted = "REDACTED";

// Refusals that the caller, the app or the account has to be changed for. Anything else says nothing about the request.
const refusals: readonly string[] = ["INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION"];

/** Explains one request. NOT_FOUND and outages are errors, as with Forward. */
export async function explainForward(
  collaborators: ExplainCollaborators,
  { projectId, environment, externalUserId, accountId, method, url, headers }: ExplainForwardRequest,
  call: Call,
): Promise<ExplainForwardResponse> {
  const asked = { externalUserId, accountId, method, url, headers, body: Buffer.alloc(0), timeoutMs: 0 };
  try {
    checkForm(asked);
    const target = { projectId, environment, externalUserId, accountId };
    return await withLease(collaborators, target, call, async ({ lease }) =>
      composed(lease, asked, collaborators.compose),
    );
  } catch (error) {
    if (!(error instanceof StatusError) || !refusals.includes(error.code)) throw error;
    return { allowed: false, rule: error.reason, message: error.message, url: "", headers: [] };
  }
}

function composed(lease: AllowedUse, asked: RequestedCall, compose: ComposeRequest): ExplainForwardResponse {
  const use = { ...lease, headers: lease.headers.map(withoutValue), query: lease.query.map(withoutValue) };
  const { url, headers } = compose(use, asked);
  return {
    allowed: true,
    rule: "ALLOWED",
    message: "Forward would send this.",
    url: url.href,
    headers: headers.map(([name, value]) => ({ name, value })),
  };
}

function withoutValue({ name }: InjectedValue): InjectedValue {
  return { name, value: redacted };
}
