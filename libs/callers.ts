// Who may call which method: one table per service, as data, with default deny. A caller is known by the service named in
// its certificate, by its bearer token, or by both when a service passes a caller's token on. A row lists the ways in; a
// method without a row stops the start. What a token is bound to (project, environment, user) is forced on the request
// here, once, so that no handler can forget it.
import { invalidField, notFound, type StatusCode, StatusError } from "./errors.ts";

/** What a bearer token says of its bearer. */
export interface TokenIdentity {
  /** The API client, or the connect token's public name. */
  readonly subject: string;
  /** The one project that it may act in. */
  readonly projectId: string;
  readonly scopes: readonly string[];
  /** Given by connect tokens: the one environment and user that they may act for. */
  readonly environment?: number;
  readonly externalUserId?: string;
  /** The member of the workspace on whose behalf the caller acts. */
  readonly actor?: { readonly memberId: string; readonly role: string };
  /** When it ends, in milliseconds since 1970. */
  readonly expireMs: number;
}

/** Who is calling. */
export interface Caller {
  /** The service of the client certificate, for calls between services. */
  readonly service?: string;
  readonly token?: TokenIdentity;
}

/** One way in: every condition given must hold. `{}` lets anybody in. */
export interface Admission {
  /** The service that must hold the connection's certificate; without it the connection must have none. */
  readonly service?: string;
  /** The scope that the bearer token must have; without it no token is asked for. */
  readonly scope?: string;
  /** Whether a connect token may have that scope: a user's own browser, which may touch that user's accounts alone. */
  readonly connectToken?: boolean;
  /** Whether who acts for a member of the workspace must act for one of its owners or admins. */
  readonly administrators?: boolean;
}

/** The ways in, for each method of a service. */
export type CallersTable<Method extends string> = Readonly<Record<Method, readonly Admission[]>>;

/** Throws unless the table has a row for each method. The types say so too; this holds for what the types do not see. */
export function checkCallersTable(methods: readonly string[], table: CallersTable<string>): void {
  const missing = methods.filter((method) => !Object.hasOwn(table, method));
  if (missing.length > 0) throw new Error(`the callers table has no row for ${missing.join(", ")}`);
}

/** Whether scopes that were granted include one that is needed: `*` and `connect:*` include all that they begin. */
export function scopesInclude(granted: readonly string[], needed: string): boolean {
  return granted.some((scope) => scope === needed || (scope.endsWith("*") && needed.startsWith(scope.slice(0, -1))));
}

/** Whether a member is one of the workspace's owners and admins. */
export function isAdministrator({ role }: NonNullable<TokenIdentity["actor"]>): boolean {
  return ["owner", "admin"].includes(role.toLowerCase());
}

/** Lets the caller in by one row of the table, or throws UNAUTHENTICATED or PERMISSION_DENIED. */
export function admit(row: readonly Admission[], caller: Caller): void {
  let best: { code: StatusCode; reason: string; message: string } = {
    code: "PERMISSION_DENIED",
    reason: "CALLER_NOT_ALLOWED",
    message: "This caller may not call this method.",
  };
  const actor = caller.token?.actor;
  for (const { service, scope, connectToken, administrators } of row) {
    if (service !== caller.service) continue;
    if (scope !== undefined && caller.token === undefined) {
      best = { code: "UNAUTHENTICATED", reason: "TOKEN_REQUIRED", message: "A bearer token is required." };
    } else if (scope !== undefined && !scopesInclude(caller.token?.scopes ?? [], scope)) {
      best = { code: "PERMISSION_DENIED", reason: "SCOPE_MISSING", message: `The token lacks the scope ${scope}.` };
    } else if (scope !== undefined && caller.token?.externalUserId !== undefined && connectToken !== true) {
      best = {
        code: "PERMISSION_DENIED",
        reason: "CONNECT_TOKEN_NOT_ALLOWED",
        message: "A connect token cannot call this method.",
      };
    } else if (administrators && actor !== undefined && !isAdministrator(actor)) {
      best = {
        code: "PERMISSION_DENIED",
        reason: "MEMBER_NOT_ALLOWED",
        message: "Only owners and admins of the workspace may do this.",
      };
    } else {
      return;
    }
  }
  throw new StatusError(best.code, best.reason, best.message);
}

/** The fields of a request that say whom it is for. */
interface Scoped {
  projectId?: string;
  environment?: number;
  externalUserId?: string;
}

/**
 * Fills a request's empty project, environment and user from the token and refuses others than the token's. What belongs
 * to another project is answered like what does not exist.
 */
export function bindToToken(request: object, token: TokenIdentity | undefined): void {
  const scoped = request as Scoped;
  if (scoped.projectId !== undefined) {
    scoped.projectId ||= token?.projectId ?? "";
    if (scoped.projectId === "") throw invalidField("project_id", "is required");
    if (token !== undefined && token.projectId !== scoped.projectId) throw notFound("project");
  }
  if (scoped.environment !== undefined) {
    scoped.environment ||= token?.environment ?? 0;
    if (scoped.environment === 0) throw invalidField("environment", "is required");
    if ((token?.environment ?? scoped.environment) !== scoped.environment) throw notFound("environment");
  }
  if (scoped.externalUserId !== undefined && token?.externalUserId !== undefined) {
    scoped.externalUserId ||= token.externalUserId;
    if (token.externalUserId !== scoped.externalUserId) throw notFound("user");
  }
  // A streamed request carries its scope in the head, one case of a oneof: `{ $case, value }`.
  for (const part of Object.values(request)) {
    if (typeof part?.$case !== "string" || typeof part.value !== "object" || part.value instanceof Uint8Array) continue;
    bindToToken(part.value, token);
  }
}
