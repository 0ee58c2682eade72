// What a grant must be to be kept, beside valid: the scopes that were asked for, the values that the app needs, and, when an
// account is connected again, the same user at the provider. Pure; whoever refuses a grant revokes it (authorize.ts).
import { type CapturedField, type CatalogApp, fitsCapture } from "#libs/catalog.ts";
import { digest } from "#libs/ids.ts";
import { expandBaseUrl } from "#libs/templates.ts";
import { valueAt } from "./token-answers.ts";

/** Why a grant is not kept, by a stable name. */
export type GrantFault = "SCOPES_MISSING" | "VALUES_MISSING" | "IDENTITY_MISMATCH" | "IDENTITY_UNKNOWN";

/** Who the user is at the provider. */
export interface Identity {
  /** For people; empty when unknown. */
  readonly name: string;
  /** What tells users apart, by the app's entry its id or its name; empty when unknown. */
  readonly key: string;
}

// OpenID Connect's own: providers leave them out of what they tell, or rename them.
const untoldScopes = ["openid", "offline_access", "profile", "email", "address", "phone"];

// Long enough for a URL; more is no name of an instance.
const maxValueLength = 2_000;

/** Whether some of the scopes asked for were not granted. Providers that say nothing of scopes granted all (RFC 6749, 5.1). */
export function lacksScopes(
  app: CatalogApp,
  asked: readonly string[],
  granted: readonly string[] | undefined,
): boolean {
  if (granted === undefined || app.oauth2?.scopes_comparable === false) return false;
  const has = new Set(granted);
  return asked.some((scope) => !has.has(scope) && !untoldScopes.includes(scope));
}

/** The values that an app's entry takes from one place. What does not fit is left out. */
export function capture(
  app: CatalogApp,
  from: CapturedField["from"],
  answer: unknown,
): Readonly<Record<string, string>> {
  const wanted = capturedFields(app).filter(([, field]) => field.from === from);
  const found = wanted.flatMap(([name, field]) => {
    const value = textOf(valueAt(answer, field.at));
    return value !== undefined && fitsCapture(field, value) ? [[name, value] as const] : [];
  });
  return Object.fromEntries(found);
}

/** Whether the connection did not bring what the app needs, or what it brought makes no base URL. */
export function lacksValues(app: CatalogApp, fields: Readonly<Record<string, string>>): boolean {
  const wanted = capturedFields(app);
  if (wanted.length === 0) return false;
  if (wanted.some(([name, { optional }]) => !optional && !Object.hasOwn(fields, name))) return true;
  return app.proxy.enabled && expandBaseUrl(app.proxy.base_url, fields).kind === "deny";
}

/** Whether the user at the provider is another than the account's, as far as that one is known. */
export function judgeIdentity(known: Buffer | null | undefined, { name, key }: Identity): GrantFault | undefined {
  if (known === null || known === undefined) return undefined;
  if (key === "") return "IDENTITY_UNKNOWN";
  // The name too: the entry may have learned of an id since the account was connected.
  return [key, name].some((text) => text !== "" && digest(text).equals(known)) ? undefined : "IDENTITY_MISMATCH";
}

function capturedFields({ oauth2 }: CatalogApp) {
  return Object.entries(oauth2?.capture ?? {});
}

function textOf(value: unknown): string | undefined {
  const text = typeof value === "number" ? String(value) : value;
  const isSound = typeof text === "string" && text.length <= maxValueLength && /^[^\p{Cc}\p{Cs}]*$/u.test(text);
  return isSound ? text : undefined;
}
