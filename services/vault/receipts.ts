// Receipts of destroyed credentials as signed statements: a compact JWS (EdDSA) that anybody can verify offline with the
// vault's public key, years later, to prove an erasure, or to destroy again what a restored backup brought back. A receipt says
// what the vault knows when it is issued: asked again later, the provider's answer may have come.
import { createLocalJWKSet, errors, type JWK, jwtVerify, SignJWT } from "jose";
import { z } from "zod";
import type { SigningKey } from "#libs/signing-key.ts";
import type { DestroyedCredential } from "./destroy.ts";

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
  /** Kinds of secret; none where what was destroyed could not be read. */
  destroyed: z.array(z.string()),
  /** Of the secrets that were destroyed. */
  generation: z.string(),
  provider_revocation: z.string(),
});

/** What a receipt says. */
export type Receipt = z.infer<typeof claims>;

/** Signs the receipt of one credential. */
export function signReceipt(
  { privateKey, keyId }: SigningKey,
  { row, providerRevocation }: DestroyedCredential,
  now: Date,
): Promise<string> {
  const facts: Receipt = {
    iat: Math.floor(now.getTime() / 1000),
    project_id: row.projectId,
    environment: row.environment,
    external_user_id: row.externalUserId,
    account_id: row.accountId,
    app_slug: row.appSlug,
    destroy_time: (row.revokeTime ?? now).toISOString(),
    destroyed: [...row.destroyedKinds],
    // Destroying has moved the row on by one.
    generation: String(row.generation - 1n),
    provider_revocation: providerRevocation,
  };
  return new SignJWT(facts)
    .setProtectedHeader({ alg: "EdDSA", kid: keyId, typ: mediaType })
    .setIssuer(issuer)
    .sign(privateKey);
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
