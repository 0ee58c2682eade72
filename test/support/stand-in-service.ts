// Plays a neighbour of the service under test: a true server on the contract's definition, with mutual TLS, true access
// tokens and the handlers that a test gives. What a test does not give answers UNIMPLEMENTED.
import { exportJWK, type GenerateKeyPairResult, generateKeyPair, SignJWT } from "jose";
import { accessTokenVerifier, type IdentityClaims, type TokenKey, tokenIssuer } from "#libs/access-tokens.ts";
import type { Admission, CallersTable } from "#libs/callers.ts";
import { StatusError, unimplemented } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import type { Handlers, MethodName, ServiceDefinition } from "#libs/rpc.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import { type RunningServer, startServer } from "#libs/rpc-server.ts";
import { testTls } from "./tls.ts";

const keyPair: Promise<GenerateKeyPairResult> = generateKeyPair("EdDSA");
const keyId = "test-key";

/** The key that `signToken` signs with, as GetTokenKeys publishes it. */
export async function tokenKeys(): Promise<readonly TokenKey[]> {
  const { x = "" } = await exportJWK((await keyPair).publicKey);
  return [{ keyId, x }];
}

/** An access token as the account service would issue it. */
export async function signToken(claims: IdentityClaims, lifetimeSeconds = 3600): Promise<string> {
  const nowSeconds = Math.floor(Date.now() / 1000);
  return new SignJWT({ ...claims })
    .setProtectedHeader({ alg: "EdDSA", kid: keyId })
    .setIssuer(tokenIssuer)
    .setAudience(tokenIssuer)
    .setIssuedAt(nowSeconds)
    .setExpirationTime(nowSeconds + lifetimeSeconds)
    .sign((await keyPair).privateKey);
}

const verify = accessTokenVerifier(tokenKeys, Date.now);

/** The account service takes connect tokens as they are; the test says which it knows. */
function authenticate(connectTokens: Readonly<Record<string, IdentityClaims>>): Authenticate {
  return async (bearer) => {
    if (!bearer.startsWith("ctok_")) return { identity: await verify(bearer), token: bearer };
    const claims = connectTokens[bearer];
    if (claims === undefined) throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "The token is not valid.");
    return { identity: await verify(await signToken(claims)), token: bearer };
  };
}

/** What a stand-in is made of. */
export interface StandInOptions<D extends ServiceDefinition> {
  readonly definition: D;
  readonly service: "account" | "vault" | "proxy";
  readonly handlers: Partial<Handlers<D>>;
  /** Who may call each of the handlers given. */
  readonly callers: Partial<CallersTable<MethodName<D>>>;
  readonly connectTokens?: Readonly<Record<string, IdentityClaims>>;
  /** A fixed port, for one that comes back after a stop. */
  readonly port?: number;
}

/** Starts a stand-in on loopback. */
export async function startStandIn<D extends ServiceDefinition>(options: StandInOptions<D>): Promise<RunningServer> {
  const { definition, service, handlers, callers, connectTokens = {}, port = 0 } = options;
  const methods = Object.entries(definition.methods);
  const unbuilt = methods.map(([key, { name }]) => [
    key,
    () => {
      throw unimplemented(name);
    },
  ]);
  const closed = methods.map(([key]): [string, readonly Admission[]] => [key, []]);
  return startServer({
    definition,
    handlers: { ...Object.fromEntries(unbuilt), ...handlers } as Handlers<D>,
    callers: { ...Object.fromEntries(closed), ...callers } as CallersTable<MethodName<D>>,
    authenticate: authenticate(connectTokens),
    internalAddress: `127.0.0.1:${port}`,
    tls: await testTls(service),
    reflection: false,
    log: createLogger(service, "silent"),
  });
}
