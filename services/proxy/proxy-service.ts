// The proxy service: sends API requests on behalf of connected accounts. Keeps nothing: accounts are the account service's,
// credentials the vault's, and each reaches this process for one request at a time.

import type { CallersTable } from "#libs/callers.ts";
import type { Handlers, MethodName } from "#libs/rpc.ts";
import type { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { explainForward } from "./explain-forward.ts";
import { type ForwardCollaborators, forward } from "./forward.ts";
import { forwardStream } from "./forward-stream.ts";
import { requestComposer } from "./outgoing-request.ts";

// The vault leases to a caller's token alone, so even the operator brings one.
const forwardCallers = [
  { scope: "connect:proxy", connectToken: true },
  { service: "gateway", scope: "connect:proxy", connectToken: true },
  { service: "operator", scope: "connect:proxy" },
];

/** Who may call what. */
export const proxyCallers: CallersTable<MethodName<typeof ProxyServiceDefinition>> = {
  forward: forwardCallers,
  forwardStream: forwardCallers,
  explainForward: forwardCallers,
};

/** What the service works with. */
export type ProxyCollaborators = Omit<ForwardCollaborators, "compose"> & {
  /** `host:port` of development upstreams; empty in production. */
  readonly exemptTargets: readonly string[];
};

/** Makes the handlers. */
export function proxyService({
  exemptTargets,
  ...others
}: ProxyCollaborators): Handlers<typeof ProxyServiceDefinition> {
  const collaborators = { ...others, compose: requestComposer(exemptTargets) };
  return {
    forward: (request, call) => forward(collaborators, request, call),
    forwardStream: (pieces, call) => forwardStream(collaborators, pieces, call),
    explainForward: (request, call) => explainForward(collaborators, request, call),
  };
}
