// Verifies a posting as the Standard Webhooks specification says a receiver has to: written from the specification, without the
// signing code. (The specification's own package draws in another whose licence is not among those that this project takes.)
import { createHmac, timingSafeEqual } from "node:crypto";

// What the specification's libraries allow clocks to differ.
const toleranceSeconds = 300;

/** A receiver with one signing key, `whsec_` and base64. */
export class Webhook {
  readonly #key: Buffer;

  constructor(signingKey: string) {
    if (!signingKey.startsWith("whsec_")) throw new Error("not a signing key");
    this.#key = Buffer.from(signingKey.slice("whsec_".length), "base64");
  }

  /** Gives the body's JSON; throws when no signature is right or the time is too far off. */
  verify(body: string | Buffer, headers: Readonly<Record<string, string>>): unknown {
    const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures = "" } = headers;
    if (!id || !timestamp || Math.abs(Date.now() / 1000 - Number(timestamp)) > toleranceSeconds) {
      throw new Error("the headers are not those of a posting of now");
    }
    const expected = createHmac("sha256", this.#key).update(`${id}.${timestamp}.${body}`).digest();
    const isRight = signatures.split(" ").some((signature) => {
      const [version, value = ""] = signature.split(",");
      const given = Buffer.from(value, "base64");
      return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
    });
    if (!isRight) throw new Error("no signature is right");
    return JSON.parse(String(body));
  }
}
