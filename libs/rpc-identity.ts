// Who calls: the service that the connection's certificate names, and whoever the bearer token in the metadata stands for.
import type { TokenIdentity } from "./callers.ts";
import { StatusError } from "./errors.ts";
import type { ConnectedCall, PeerService } from "./peer-service.ts";
import type { Call, CallOptions } from "./rpc.ts";

/**
 * Verifies a bearer token, or throws UNAUTHENTICATED. Gives what the token says, and the token to pass on to other services:
 * the same one, or an access token that a connect token was exchanged for.
 */
export type Authenticate = (
  bearer: string,
  along: CallOptions,
) => Promise<{ readonly identity: TokenIdentity; readonly token: string }>;

interface Metadata {
  get(name: string): readonly unknown[];
}

/** The caller of one call. UNAUTHENTICATED when a bearer token is there and no good. */
export async function identify(
  stream: ConnectedCall & { readonly metadata: Metadata },
  peerService: PeerService,
  authenticate: Authenticate,
  along: Pick<Call, "deadlineMs" | "signal" | "requestId">,
): Promise<Call> {
  const service = peerService(stream);
  const ofService = service === undefined ? {} : { service };
  const bearer = bearerOf(stream.metadata);
  if (bearer === undefined) return { ...along, caller: ofService };
  const { identity, token } = await authenticate(bearer, along);
  return { ...along, caller: { ...ofService, token: identity }, token };
}

function bearerOf(metadata: Metadata): string | undefined {
  const [authorization] = metadata.get("authorization");
  if (authorization === undefined) return undefined;
  const token = /^Bearer ([\x21-\x7e]{1,8192})$/i.exec(String(authorization))?.[1];
  if (token === undefined) {
    throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "The authorization metadata is not `Bearer <token>`.");
  }
  return token;
}
