// Why a connection can wait for the product's word. A connect link works in any browser, so somebody could send a link of his
// own to a victim: the victim agrees at the provider, and the victim's account lands with the sender's user. The page says
// whose user it is for, but people agree to pages. With a token that requires verification nothing is connected before the
// product's backend has called VerifyConnection for the user who is signed in in the browser that came back:
//
//   the sender's user       is not the one who is signed in there, so the backend names another user: NOT_FOUND
//   the sender himself      never sees the verifier: it goes to the browser that agreed, and nowhere else
//
// For OAuth the verifier is a digest of what only that browser and the provider have had together, the state, the browser's
// binding and the code. So a reload gets the same one, and only its own digest is kept.
import { timingSafeEqual } from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import type { ConnectionRow } from "./schema.ts";

// A product verifies at once; a user may have to sign in there first.
const verificationMs = 10 * 60_000;

/** The verifier of a connection through a provider. */
export function verifierOf(redirect: {
  readonly state: string;
  readonly browserBinding: string;
  readonly code: string;
}): string {
  const { state, browserBinding, code } = redirect;
  return digest(JSON.stringify(["verifier", state, browserBinding, code])).toString("base64url");
}

/** Until when what ends now can be verified. */
export function verifiableUntil(time: Date): Date {
  return new Date(time.getTime() + verificationMs);
}

/** Whether the verifier is the connection's own. */
export function isVerifierOf({ verifierDigest }: Pick<ConnectionRow, "verifierDigest">, verifier: string): boolean {
  return verifierDigest !== null && timingSafeEqual(verifierDigest, digest(verifier));
}

/** The redirect of the product with what its backend is to verify. */
export function verificationUri(redirectUri: string, connectionId: string, verifier: string): string {
  if (redirectUri === "") return "";
  const url = new URL(redirectUri);
  url.searchParams.set("connection_id", connectionId);
  url.searchParams.set("verifier", verifier);
  return url.href;
}

/** What replaces an account's credential takes effect in the vault at once, so there is nothing that could wait. */
export function reconnectUnverifiable(): StatusError {
  const message =
    "A connect token that requires verification connects new accounts only: reconnect with one that does not.";
  return new StatusError("FAILED_PRECONDITION", "RECONNECT_UNVERIFIABLE", message);
}
