// What the provider calls the user of a new account, by the app's identity request.
import type { ProviderContext } from "./provider.ts";
import { endpointUrl, type ProviderAccess, readJson, sendToProvider } from "./provider-http.ts";
import { valueAt } from "./token-answers.ts";

// The grant is kept in memory meanwhile, and the user waits.
const identityTimeoutMs = 5_000;

/** What the provider calls the user; empty when the app has no identity request or it brings no name. Never rejects. */
export async function fetchIdentityName(
  access: ProviderAccess,
  { app, fields }: Omit<ProviderContext, "client">,
  accessToken: string,
): Promise<string> {
  const { identity } = app.oauth2;
  if (identity === undefined) return "";
  try {
    const headers = { authorization: `Bearer ${accessToken}`, accept: "application/json" };
    const url = endpointUrl(identity.url, fields);
    const timeoutMs = Math.min(identityTimeoutMs, access.timeoutMs ?? identityTimeoutMs);
    const response = await sendToProvider({ ...access, timeoutMs }, app, url, { method: "GET", headers });
    const name = response.ok ? valueAt(await readJson(response), identity.name) : undefined;
    // Control characters would be refused by the database, and the grant with them.
    return typeof name === "string"
      ? name
          .replaceAll(/\p{Cc}/gu, "")
          .slice(0, 250)
          .toWellFormed()
      : "";
  } catch {
    // Whatever it was: the account is connected either way, it only has no name.
    return "";
  }
}
