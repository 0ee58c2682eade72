// Tokens as the account service signs them, with a true key, and what an attacker would make of them.
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { SignJWT, UnsecuredJWT } from "jose";
import { beforeEach, describe, expect, test } from "vitest";
import { accessTokenVerifier, type TokenKey, tokenIssuer } from "#libs/access-tokens.ts";

const startMs = Date.parse("2026-01-01T00:00:00Z");
let nowMs = startMs;

beforeEach(() => {
  nowMs = startMs;
});

interface Signer {
  readonly published: TokenKey;
  readonly privateKey: KeyObject;
}

function signer(keyId: string): Signer {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  return { privateKey, published: { keyId, x: publicKey.export({ format: "jwk" }).x ?? "" } };
}

const first = signer("k1");
const claims = { sub: "cli_1", project_id: "proj_1", scope: "connect:proxy connect:accounts:read" };

/** A token good for an hour, signed by `first` unless told otherwise. */
function token(by = first, more: { claims?: object; issuer?: string; audience?: string; expireMs?: number } = {}) {
  return new SignJWT({ ...claims, ...more.claims })
    .setProtectedHeader({ alg: "EdDSA", kid: by.published.keyId })
    .setIssuer(more.issuer ?? tokenIssuer)
    .setAudience(more.audience ?? tokenIssuer)
    .setExpirationTime(new Date(more.expireMs ?? startMs + 3_600_000))
    .sign(by.privateKey);
}

function verifier(keys: () => readonly TokenKey[] = () => [first.published]) {
  const counts = { fetches: 0 };
  const verify = accessTokenVerifier(
    async () => {
      counts.fetches += 1;
      return keys();
    },
    () => nowMs,
  );
  return { verify, counts };
}

const refused = (reason: string) => ({ code: "UNAUTHENTICATED", reason });

describe("an access token", () => {
  test("gives what it says", async () => {
    const bound = { environment: 1, external_user_id: "ann", actor: { member_id: "m1", role: "admin" } };
    expect(await verifier().verify(await token(first, { claims: bound }))).toEqual({
      subject: "cli_1",
      projectId: "proj_1",
      scopes: ["connect:proxy", "connect:accounts:read"],
      expireMs: startMs + 3_600_000,
      environment: 1,
      externalUserId: "ann",
      actor: { memberId: "m1", role: "admin" },
    });
  });

  test("is refused once it has expired, also when it was good before", async () => {
    const { verify } = verifier();
    const text = await token();
    await verify(text);
    nowMs = startMs + 3_600_000 + 1000;
    await expect(verify(text)).rejects.toMatchObject(refused("TOKEN_EXPIRED"));
  });

  test.each([
    ["another issuer", { issuer: "else" }],
    ["another audience", { audience: "else" }],
    ["no project", { claims: { project_id: undefined } }],
    ["a scope that is no text", { claims: { scope: ["*"] } }],
  ])("with %s is refused", async (_name, more) => {
    await expect(verifier().verify(await token(first, more))).rejects.toMatchObject(refused("TOKEN_INVALID"));
  });

  test("is refused without a signature, signed by a stranger, or altered", async () => {
    const { verify } = verifier();
    const unsigned = new UnsecuredJWT(claims)
      .setIssuer(tokenIssuer)
      .setAudience(tokenIssuer)
      .setExpirationTime(new Date(startMs + 3_600_000))
      .encode();
    const [head = "", payload = "", signature = ""] = (await token()).split(".");
    const richer = JSON.parse(Buffer.from(payload, "base64url").toString());
    const altered = Buffer.from(JSON.stringify({ ...richer, scope: "*" })).toString("base64url");
    const texts = [
      unsigned,
      await token(signer("k1")),
      `${head}.${altered}.${signature}`,
      "",
      "a.b.c",
      "x".repeat(8192),
    ];
    for (const text of texts) await expect(verify(text)).rejects.toMatchObject(refused("TOKEN_INVALID"));
  });

  test("is refused when the published key was taken for an HMAC secret", async () => {
    const forged = await new SignJWT(claims)
      .setProtectedHeader({ alg: "HS256", kid: "k1" })
      .setIssuer(tokenIssuer)
      .setAudience(tokenIssuer)
      .setExpirationTime(new Date(startMs + 3_600_000))
      .sign(Buffer.from(first.published.x, "base64url"));
    await expect(verifier().verify(forged)).rejects.toMatchObject(refused("TOKEN_INVALID"));
  });

  test("is refused without an end", async () => {
    const endless = await new SignJWT(claims)
      .setProtectedHeader({ alg: "EdDSA", kid: "k1" })
      .setIssuer(tokenIssuer)
      .setAudience(tokenIssuer)
      .sign(first.privateKey);
    await expect(verifier().verify(endless)).rejects.toMatchObject(refused("TOKEN_INVALID"));
  });
});

describe("the keys", () => {
  test("are fetched once when many callers come at the start", async () => {
    const { verify, counts } = verifier();
    const texts = await Promise.all([token(), token(first, { claims: { sub: "cli_2" } })]);
    await Promise.all(texts.map(verify));
    expect(counts.fetches).toBe(1);
  });

  test("are fetched again for a key that is not known, but not for each forged id", async () => {
    const second = signer("k2");
    const published = [first.published];
    const { verify, counts } = verifier(() => published);
    await verify(await token());
    const early = await token(second);
    await expect(verify(early)).rejects.toMatchObject(refused("TOKEN_INVALID"));
    expect(counts.fetches).toBe(1);

    published.push(second.published);
    nowMs += 5000;
    await Promise.all([verify(early), verify(await token(second, { claims: { sub: "cli_2" } }))]);
    expect(counts.fetches).toBe(2);
    for (let index = 0; index < 5; index += 1) {
      await expect(verify(await token(signer(`forged${index}`)))).rejects.toMatchObject(refused("TOKEN_INVALID"));
    }
    expect(counts.fetches).toBe(2);
  });

  test("that cannot be fetched are an outage, not a bad token, and are asked for again", async () => {
    let down = true;
    const { verify } = verifier(() => {
      if (down) throw new Error("down");
      return [first.published];
    });
    const text = await token();
    await expect(verify(text)).rejects.toThrow("down");
    down = false;
    expect(await verify(text)).toMatchObject({ subject: "cli_1" });
  });
});

test("a key that is taken back is good for five minutes more at most, verdicts by it too", async () => {
  nowMs = startMs;
  const second = signer("k2");
  let published = [first.published, second.published];
  const { verify, counts } = verifier(() => published);
  const [taken, kept] = [await token(), await token(second)];
  for (const text of [taken, kept]) await verify(text);
  published = [second.published];
  nowMs = startMs + 300_000;
  await verify(taken);
  expect(counts.fetches).toBe(1);
  nowMs += 1;
  await verify(kept);
  await expect.poll(() => counts.fetches).toBe(2);
  await expect(verify(taken)).rejects.toMatchObject(refused("TOKEN_INVALID"));
  expect(await verify(kept)).toMatchObject({ subject: "cli_1" });
});

test("a verdict is kept, and no more than ten thousand are", { timeout: 60_000 }, async () => {
  nowMs = startMs;
  const { verify } = verifier();
  const kept = await token();
  const verdict = await verify(kept);
  // The same object: a token that is verified again gives a new one.
  expect(await verify(kept)).toBe(verdict);
  for (let index = 0; index < 10_000; index += 1)
    await verify(await token(first, { claims: { sub: `other_${index}` } }));
  expect(await verify(kept)).not.toBe(verdict);
});
