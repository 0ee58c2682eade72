// Masks the injected secret where an upstream's answer shows it: whoever may use an account must not get its credential by an
// echo. What is looked for: each injected value, what follows the scheme in `Bearer <token>`, the base64 of `Basic` and the
// password in it (the user name where there is no password: some APIs take their key there; a user name beside a password
// often is an address that answers rightly show), and a query value as it stands in a URL. Exact matches only, in headers,
// trailers and the first MiB of the body, across the borders of chunks; a match becomes as many `*`, so that lengths hold.
//
// Secrets shorter than 8 bytes are not looked for: they would be found by chance, and masking them would show where.
// A compressed answer is not looked into; none is asked for.
//
// Of a stream only the end of a chunk that may begin a secret is held back, until the next chunk: in practice nothing, since
// events and lines end in characters that no secret begins with. Without a match nothing is copied: 1 MiB takes about 0.1 ms
// for each text looked for, by Buffer.indexOf.
import type { Header } from "#libs/request-headers.ts";
import { oncePer } from "./once-per.ts";

/** What is put into a request. */
interface Injected {
  readonly headers: readonly { readonly value: string }[];
  readonly query: readonly { readonly value: string }[];
  readonly echoAllowed: boolean;
}

/** Masks one answer. */
export interface Redactor {
  headers(headers: readonly Header[]): readonly Header[];
  /** Takes the next chunk of the body, and gives what can be passed on: possibly nothing. */
  push(chunk: Buffer): Buffer;
  /** What is still held back. */
  end(): Buffer;
}

const shortestSecret = 8;
const searchedBytes = 1024 * 1024;
const nothing: Buffer = Buffer.alloc(0);

/** Makes a redactor for one answer to what was sent with this credential. */
export function redactor(injected: Injected): Redactor {
  const { secrets, needles, longest } = soughtIn(injected);
  let held: Buffer = nothing;
  let passed = 0;

  return {
    headers: (headers) =>
      secrets.length === 0 ? headers : headers.map(([name, value]): Header => [name, maskText(value, secrets)]),
    push(chunk) {
      if (longest === 0 || passed >= searchedBytes) return release(chunk);
      const all = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      // A match that begins within the first MiB may end after it.
      const searched = all.subarray(0, searchedBytes - passed + longest - 1);
      const masked = mask(searched, needles);
      const whole = masked === searched ? all : Buffer.concat([masked, all.subarray(searched.length)]);
      const open = whole.length - unfinished(whole, needles);
      const end = passed + open < searchedBytes ? open : whole.length;
      held = whole.subarray(end);
      passed += end;
      return whole.subarray(0, end);
    },
    end: () => release(nothing),
  };

  function release(chunk: Buffer): Buffer {
    const all = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
    held = nothing;
    passed += all.length;
    return all;
  }
}

const soughtIn = oncePer((injected: Injected) => {
  const secrets = injected.echoAllowed ? [] : secretsOf(injected);
  const needles = secrets.map((secret) => Buffer.from(secret));
  return { secrets, needles, longest: Math.max(0, ...needles.map(({ length }) => length)) };
});

/** What must not be shown. A text that holds another one of them is masked enough by that. */
function secretsOf({ headers, query }: Injected): readonly string[] {
  const all = [
    ...headers.flatMap(({ value }) => headerSecrets(value)),
    ...query.flatMap(({ value }) => [value, encodeURIComponent(value)]),
  ].filter((secret) => Buffer.byteLength(secret) >= shortestSecret);
  const unique = [...new Set(all)];
  return unique.filter((secret) => !unique.some((other) => other !== secret && secret.includes(other)));
}

function headerSecrets(value: string): readonly string[] {
  const [, scheme = "", rest = value] = /^([A-Za-z][\w-]*) +(\S.*)$/.exec(value) ?? [];
  if (scheme.toLowerCase() !== "basic") return [value, rest];
  const [, user = "", password = ""] = /^([^:]*):(.*)$/s.exec(Buffer.from(rest, "base64").toString()) ?? [];
  return [rest, password.length > 0 ? password : user];
}

function maskText(text: string, secrets: readonly string[]): string {
  let masked = text;
  for (const secret of secrets) {
    if (masked.includes(secret)) masked = masked.replaceAll(secret, "*".repeat(secret.length));
  }
  return masked;
}

/** The same bytes when there is no match. */
function mask(bytes: Buffer, needles: readonly Buffer[]): Buffer {
  let masked = bytes;
  for (const needle of needles) {
    for (let at = masked.indexOf(needle); at !== -1; at = masked.indexOf(needle, at + needle.length)) {
      if (masked === bytes) masked = Buffer.from(bytes);
      masked.fill("*", at, at + needle.length);
    }
  }
  return masked;
}

/** How many bytes at the end may be the beginning of a secret. */
function unfinished(bytes: Buffer, needles: readonly Buffer[]): number {
  let longest = 0;
  for (const needle of needles) {
    const from = Math.max(0, bytes.length - needle.length + 1);
    for (let at = bytes.indexOf(needle[0] ?? 0, from); at !== -1; at = bytes.indexOf(needle[0] ?? 0, at + 1)) {
      const length = bytes.length - at;
      if (bytes.compare(needle, 0, length, at) === 0) {
        longest = Math.max(longest, length);
        break;
      }
    }
  }
  return longest;
}
