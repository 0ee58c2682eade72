// Receipts of destroyed credentials as signed statements: a compact JWS (EdDSA) that anybody can verify offline with the
// vault's public key, years later, to prove an erasure, or to destroy again what a restored backup brought back. A receipt says
// what the vault knows when it is issued: asked again later, the provider's answer may have come.
import { createLocalJWKSet, errors, type JWK, jwtVerify, SignJWT } from "jose";
import { z } from "zod";
import type { SigningKey } from "#libs/signing-key.ts";
import type { DestroyedCredential } from "./destroyed-credentials.ts";

const issuer = "deputy-vault";
const mediaType = "deputy-receipt+jwt";

const claims = z.object({
  iat: z.number(),
  project_id: z.string(),
  environment: z.enum(["development", "production"]),
  external_user_id: z.string(),
  account_id: z.string(),
  app_slug: z.string(),
  destroy_time: z.iso.datetime(),
  /** Kinds of secret; none where they are not known. */
  destroyed: z.array(z.string()),
  /** Of the secrets that were destroyed. */
  generation: z.string(),
  provider_revocation: z.string(),
});

/** What a receipt says. */
export type Receipt = z.infer<typeof claims>;

/** What a receipt is of, and the receipt. */
export interface IssuedReceipt {
  readonly credential: DestroyedCredential;
  readonly jws: string;
}

/** Signs the receipt of one credential, as it was read. */
export async function issueReceipt(
  { privateKey, keyId }: SigningKey,
  credential: DestroyedCredential,
): Promise<IssuedReceipt> {
  const { readTime, revokeTime, generation } = credential;
  const facts: Receipt = {
    iat: Math.floor(readTime.getTime() / 1000),
    project_id: credential.projectId,
    environment: credential.environment,
    external_user_id: credential.externalUserId,
    account_id: credential.accountId,
    app_slug: credential.appSlug,
    destroy_time: (revokeTime ?? readTime).toISOString(),
    destroyed: [...credential.destroyedKinds],
    // Destroying has moved the row on by one.
    generation: String(generation - 1n),
    provider_revocation: credential.providerRevocation,
  };
  const header = { alg: "EdDSA", kid: keyId, typ: mediaType };
  const jws = await new SignJWT(facts).setProtectedHeader(header).setIssuer(issuer).sign(privateKey);
  return { credential, jws };
}

/** Verifies receipts with the vault's public keys: gives what one says, or why it is none, in a few words. */
export function receiptVerifier(
  keys: readonly JWK[],
): (jws: string) => Promise<{ readonly receipt: Receipt } | { readonly fault: string }> {
  const findKey = createLocalJWKSet({ keys: [...keys] });
  return async (jws) => {
    try {
      const { payload } = await jwtVerify(jws, findKey, { algorithms: ["EdDSA"], typ: mediaType, issuer });
      return { receipt: claims.parse(payload) };
    } catch (error) {
      if (error instanceof errors.JOSEError) return { fault: error.message };
      if (error instanceof z.ZodError) return { fault: "the payload is no receipt's" };
      throw error;
    }
  };
}
