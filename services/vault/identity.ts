// Who the user of a new account is at the provider, by the app's identity request.
import { capture, type Identity } from "./grant-rules.ts";
import type { ProviderContext } from "./provider.ts";
import { endpointUrl, type ProviderAccess, readJson, sendToProvider } from "./provider-http.ts";
import { valueAt } from "./token-answers.ts";

// The grant is kept in memory meanwhile, and the user waits.
const identityTimeoutMs = 5_000;

const unknown = { name: "", key: "", captured: {} };

/**
 * Who the user is, and what the app's entry takes from the answer; unknown when the app has no identity request or it brings
 * nothing. Never rejects.
 */
export async function fetchIdentity(
  access: ProviderAccess,
  { app, fields }: Omit<ProviderContext, "client">,
  accessToken: string,
): Promise<Identity & { readonly captured: Readonly<Record<string, string>> }> {
  const { identity } = app.oauth2;
  if (identity === undefined) return unknown;
  try {
    const headers = { authorization: `Bearer ${accessToken}`, accept: "application/json" };
    const url = endpointUrl(identity.url, fields);
    const timeoutMs = Math.min(identityTimeoutMs, access.timeoutMs ?? identityTimeoutMs);
    const response = await sendToProvider({ ...access, timeoutMs }, app, url, { method: "GET", headers });
    if (!response.ok) return unknown;
    const answer = await readJson(response);
    const name = shown(valueAt(answer, identity.name));
    const key = identity.id === undefined ? name : identifying(valueAt(answer, identity.id));
    return { name, key, captured: capture(app, "identity", answer) };
  } catch {
    // Whatever it was: an account is connected either way, it only has no name.
    return unknown;
  }
}

// Control characters would be refused by the database, and the grant with them.
function shown(value: unknown): string {
  if (typeof value !== "string") return "";
  return value
    .replaceAll(/\p{Cc}/gu, "")
    .slice(0, 250)
    .toWellFormed();
}

// Providers number their users, too. Of a user without the id that the entry names nothing is known.
function identifying(value: unknown): string {
  return typeof value === "number" || typeof value === "string" ? String(value) : "";
}
