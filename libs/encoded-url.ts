// The target URL as the REST edge receives it: base64 of its UTF-8 text, in the standard or the URL-safe alphabet, padded or
// not (existing clients send all of these). Strict: one text has one encoding per alphabet, so nothing can hide in spare bits.
import { type Denial, malformed } from "./verdict.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text inside `encoded`; what it may be is for judgeDestination to say. */
export function decodeTargetUrl(encoded: string): { readonly kind: "allow"; readonly text: string } | Denial {
  const [, digits = "", padding = ""] = /^([A-Za-z0-9+/_-]*)(={0,2})$/.exec(encoded) ?? [];
  if (digits === "") {
    return malformed("URL_NOT_BASE64", "The encoded URL is not base64.");
  }
  if (digits.length % 4 === 1 || (padding !== "" && (digits.length + padding.length) % 4 !== 0)) {
    return malformed("URL_BASE64_LENGTH", "The encoded URL has an impossible length for base64.");
  }
  const bytes = Buffer.from(digits, "base64url");
  if (bytes.toString("base64url") !== digits.replaceAll("+", "-").replaceAll("/", "_")) {
    return malformed("URL_BASE64_NOT_CANONICAL", "The encoded URL has spare bits that are not zero.");
  }
  try {
    return { kind: "allow", text: utf8.decode(bytes) };
  } catch {
    return malformed("URL_NOT_UTF8", "The encoded URL is not UTF-8 text.");
  }
}
