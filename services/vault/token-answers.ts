// What a token endpoint's answer means. Pure: sending and judging are apart, so that each can be tested and the caller
// decides what to repeat. Success is a token where the app has it, never HTTP 200 alone; a refusal is what the body says, for
// some providers say it with 200. An answer that says neither counts as none: the provider may have moved on.
import type { EgressError } from "#libs/egress-error.ts";

/** What came of a token request. */
export type TokenOutcome =
  | { readonly kind: "granted"; readonly grant: TokenGrant }
  /** The grant (or the code) is no longer good: only the user can mend it. */
  | { readonly kind: "rejected"; readonly error: string }
  /** The OAuth client was refused: the account is none the worse. */
  | { readonly kind: "client_rejected"; readonly error: string }
  /** It may pass by itself. `sent` says whether the provider may have seen the request. */
  | { readonly kind: "retry"; readonly error: string; readonly sent: boolean; readonly retryAfterSeconds?: number }
  /** The request went out and no full answer came. */
  | { readonly kind: "unknown"; readonly error: string };

/** What a provider gave. */
export interface TokenGrant {
  readonly accessToken: string;
  /** Absent when the provider gave no new one: the old one goes on. */
  readonly refreshToken?: string;
  /** Absent when the token has no end that is told. */
  readonly lifetimeSeconds?: number;
  /** Absent when the scopes are those asked for (RFC 6749, 5.1). */
  readonly scopes?: readonly string[];
}

const clientErrors: readonly string[] = ["invalid_client", "unauthorized_client"];

// Ten years: beyond it the number is a mistake, and the database's times have an end too.
const maxLifetimeSeconds = 315_360_000;

/** Judges a whole answer. */
export function judgeTokenAnswer(
  status: number,
  body: unknown,
  options: { readonly retryAfter?: string | null; readonly scopeSeparator?: string } = {},
): TokenOutcome {
  const values = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
  const named = textOf(values.error);
  const error = named && errorName(named);
  if (error === "invalid_grant") return { kind: "rejected", error };
  if (error !== undefined && clientErrors.includes(error)) return { kind: "client_rejected", error };
  if (error === undefined && status === 401) return { kind: "client_rejected", error: "HTTP_401" };
  if (error === undefined && status >= 200 && status < 300) {
    const grant = readGrant(values, options.scopeSeparator ?? " ");
    return grant ? { kind: "granted", grant } : { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" };
  }
  const retryAfterSeconds = secondsOf(options.retryAfter ?? undefined);
  return {
    kind: "retry",
    error: error ?? `HTTP_${status}`,
    sent: true,
    ...(retryAfterSeconds !== undefined && { retryAfterSeconds }),
  };
}

/** Judges a request that got no whole answer. */
export function judgeTokenFailure({ kind, sent }: EgressError): TokenOutcome {
  const error = `EGRESS_${kind.toUpperCase()}`;
  return sent ? { kind: "unknown", error } : { kind: "retry", error, sent };
}

function readGrant(values: Record<string, unknown>, scopeSeparator: string): TokenGrant | undefined {
  const accessToken = textOf(values.access_token);
  if (accessToken === undefined) return undefined;
  const refreshToken = textOf(values.refresh_token);
  // 0 is how some providers write that a token has no end: taken at its word, every call would refresh.
  const lifetimeSeconds = secondsOf(values.expires_in) || undefined;
  const scope = textOf(values.scope);
  return {
    accessToken,
    ...(refreshToken !== undefined && { refreshToken }),
    ...(lifetimeSeconds !== undefined && { lifetimeSeconds }),
    ...(scope !== undefined && { scopes: scope.split(scopeSeparator).filter(isScope) }),
  };
}

function textOf(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

// A control character would be refused by the database, and take the whole grant along.
function isScope(item: string): boolean {
  return /^[^\p{Cc}\p{Cs}]+$/u.test(item);
}

// Some providers write numbers as text.
function secondsOf(value: unknown): number | undefined {
  const seconds = typeof value === "number" ? value : typeof value === "string" && value !== "" ? Number(value) : NaN;
  return Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, maxLifetimeSeconds) : undefined;
}

/** An error code as providers form them, words and underscores; anything else could be a token that the provider echoes. */
export function errorName(text: string): string {
  return /^[a-z]+(_[a-z]+)*$/.test(text) && text.length <= 40 ? text : "unnamed_error";
}
