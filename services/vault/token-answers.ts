// What a token endpoint's answer means. Pure: sending and judging are apart, so that each can be tested and the caller
// decides what to repeat. Success is a token where the app has it, never HTTP 200 alone; a refusal is what the body says, for
// some providers say it with 200. An answer that says neither counts as none: the provider may have moved on.
import type { ErrorClasses } from "#libs/catalog.ts";
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
  /** Values that the app's entry takes from the answer. */
  readonly captured?: Readonly<Record<string, string>>;
}

/** What an answer without a token can mean. */
type ErrorClass = "terminal" | "transient" | "integration";

// RFC 6749, 5.2: what is said of the client, or of how it asks, is no account's fault.
const standardErrors: Readonly<Record<string, ErrorClass>> = {
  invalid_grant: "terminal",
  invalid_client: "integration",
  unauthorized_client: "integration",
  unsupported_grant_type: "integration",
};

// A year: beyond it the number is a mistake, and the database's times have an end too.
const maxLifetimeSeconds = 31_536_000;

// A token of another type needs more than to be shown (RFC 6749, 7.1). Slack says here whose its bearer tokens are.
const usableTypes = ["bearer", "dpop", "bot", "user"];

/** Judges a whole answer. */
export function judgeTokenAnswer(
  status: number,
  body: unknown,
  options: {
    readonly retryAfter?: string | null;
    readonly scopeSeparator?: string;
    readonly errors?: ErrorClasses;
  } = {},
): TokenOutcome {
  const named = textOf(valueAt(body, options.errors?.name_at ?? "error"));
  if (named === undefined && status >= 200 && status < 300) {
    const grant = readGrant(Object(body), options.scopeSeparator ?? " ");
    if (grant !== undefined) return { kind: "granted", grant };
  }
  const error = named === undefined ? `HTTP_${status}` : errorName(named);
  switch (classOf(status, named, options.errors)) {
    case "terminal":
      return { kind: "rejected", error };
    case "integration":
      return { kind: "client_rejected", error };
    case undefined:
      if (named === undefined && status >= 200 && status < 300) return { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" };
  }
  const retryAfterSeconds = secondsOf(options.retryAfter ?? undefined);
  return { kind: "retry", error, sent: true, ...(retryAfterSeconds !== undefined && { retryAfterSeconds }) };
}

/** The app's own word first, and the narrower one before the wider; undefined where nobody says anything. */
function classOf(status: number, error: string | undefined, errors: ErrorClasses | undefined): ErrorClass | undefined {
  const has = (matches: (rule: ErrorClasses[ErrorClass][number]) => boolean) =>
    (["terminal", "integration", "transient"] as const).find((name) => errors?.[name].some(matches));
  return (
    (error === undefined ? undefined : has((rule) => rule.error === error && rule.status === status)) ??
    (error === undefined ? undefined : has((rule) => rule.error === error && rule.status === undefined)) ??
    (error !== undefined && Object.hasOwn(standardErrors, error) ? standardErrors[error] : undefined) ??
    has((rule) => rule.error === undefined && rule.status === status) ??
    (error === undefined && status === 401 ? "integration" : undefined)
  );
}

/** Judges a request that got no whole answer. */
export function judgeTokenFailure({ kind, sent }: EgressError): TokenOutcome {
  const error = `EGRESS_${kind.toUpperCase()}`;
  return sent ? { kind: "unknown", error } : { kind: "retry", error, sent };
}

function readGrant(values: Record<string, unknown>, scopeSeparator: string): TokenGrant | undefined {
  const accessToken = textOf(values.access_token);
  // RFC 6749, A.12: anything else would break the header that the token is put into.
  if (accessToken === undefined || !/^[ -~]+$/.test(accessToken)) return undefined;
  const type = textOf(values.token_type);
  if (type !== undefined && !usableTypes.includes(type.toLowerCase())) return undefined;
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

/** The value at a path like `error.code`. */
export function valueAt(body: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((value, name) => {
    return typeof value === "object" && value !== null && Object.hasOwn(value, name)
      ? (value as Record<string, unknown>)[name]
      : undefined;
  }, body);
}
