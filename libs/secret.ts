// A secret that cannot be printed by accident: every way by which a value turns into text gives `[secret]`. The value is
// got only by `reveal()`, so each use can be found by its name.
import { createHash, timingSafeEqual } from "node:crypto";
import { inspect } from "node:util";

const redacted = "[secret]";

/** Holds a secret text. A class because only a `#private` field is out of reach of inspect, JSON, spread and clone. */
export class Secret {
  readonly #value: string;

  constructor(value: string) {
    this.#value = value;
  }

  /** The only way to the value. */
  reveal(): string {
    return this.#value;
  }

  toString(): string {
    return redacted;
  }

  toJSON(): string {
    return redacted;
  }

  valueOf(): string {
    return redacted;
  }

  [inspect.custom](): string {
    return redacted;
  }
}

/** The value of what may be a secret, at the place where it is used. */
export function reveal(value: string | Secret): string {
  return typeof value === "string" ? value : value.reveal();
}

/** Compares in constant time. Digests are compared because they have one length, so not even the length shows. */
export function secretsEqual(a: Secret, b: Secret): boolean {
  return timingSafeEqual(sha256(a.reveal()), sha256(b.reveal()));
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
