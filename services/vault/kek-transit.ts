// KEKs in HashiCorp Vault or OpenBao: a key of the transit engine. There is no official client for Node; three plain calls
// are all it takes. They leave through libs/egress.ts, as everything does.
//
// A KEK's id is `transit:<mount>/<key>:v<version>`, so it can be told how many rows each version still holds. Versions below
// the key's min_decryption_version are not offered, and rows under them seal the vault: raise it only when none is left.
//
// The token is read from its file for each call, so that an agent can renew it. What is stored is the service's own text
// `vault:v2:...`, whose version must be the id's: the text itself is not authenticated before the service opens it.
import { readFile } from "node:fs/promises";
import type { Egress } from "#libs/egress.ts";
import { wrapAssociatedData } from "./envelope.ts";
import { type KekIds, type KeyService, KeyServiceError, unanswered } from "./kek-remote.ts";

// Associated data needs an AEAD key; other types would ignore what a wrapped key belongs to.
const keyTypes: readonly unknown[] = ["aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"];
const maxAnswerBytes = 256 * 1024;

/** Where the key is. */
export interface TransitOptions {
  readonly address: URL;
  /** `<mount>/<key>`. */
  readonly key: string;
  readonly tokenFile: string;
  readonly egress: Egress;
  readonly timeoutMs: number;
}

/** The transit engine as a key service. Throws when the key is not written so. */
export function transit({ address, key, tokenFile, egress, timeoutMs }: TransitOptions): KeyService {
  const [, mount, name] = /^([\w-]+(?:\/[\w-]+)*)\/([\w.-]+)$/.exec(key) ?? [];
  if (mount === undefined || name === undefined)
    throw new Error("DEPUTY_KEK_KEYS: a transit key is written <mount>/<key>");
  const kekId = (version: number) => `transit:${key}:v${version}`;

  function versionOf(id: string): number {
    const version = id.startsWith(`transit:${key}:v`) ? Number(id.slice(`transit:${key}:v`.length)) : Number.NaN;
    if (!Number.isSafeInteger(version)) throw new KeyServiceError("denied", `has no key ${JSON.stringify(id)}`);
    return version;
  }

  async function call(method: string, path: string, signal: AbortSignal, body?: unknown): Promise<unknown> {
    const token = await readToken(tokenFile);
    const answer = await egress
      .send({
        url: new URL(`/v1/${mount}/${path}/${name}`, address),
        method,
        headers: [
          ["x-vault-token", token],
          ["x-vault-request", "true"],
          ...(body === undefined ? [] : [["content-type", "application/json"] as const]),
        ],
        ...(body !== undefined && { body: Buffer.from(JSON.stringify(body)) }),
        signals: [signal],
        totalTimeoutMs: timeoutMs,
        maxBodyBytes: maxAnswerBytes,
      })
      .catch((error: unknown) => {
        throw unanswered(error);
      });
    if (answer.status !== 200) throw refusal(answer.status, `${mount}/${path}/${name}`);
    return dataOf(answer.body);
  }

  return {
    async list(signal): Promise<KekIds> {
      const data = Object(await call("GET", "keys", signal)) as Record<string, unknown>;
      const { type, derived, latest_version: latest, min_decryption_version: least, keys } = data;
      if (!keyTypes.includes(type) || derived === true) {
        throw new KeyServiceError("denied", `has ${key} as a key of a type that does not take associated data`);
      }
      if (typeof latest !== "number") throw malformed();
      const versions = Object.keys(Object(keys)).map(Number);
      return {
        active: kekId(latest),
        all: versions.filter((version) => version >= Number(least ?? 1)).map(kekId),
      };
    },
    async encrypt(id, plaintext, owner, signal) {
      const data = await call("POST", "encrypt", signal, {
        plaintext: plaintext.toString("base64"),
        associated_data: wrapAssociatedData({ ...owner, kekId: id }).toString("base64"),
        key_version: versionOf(id),
      });
      const { ciphertext } = Object(data) as Record<string, unknown>;
      if (typeof ciphertext !== "string" || !ciphertext.startsWith(`vault:v${versionOf(id)}:`)) throw malformed();
      return Buffer.from(ciphertext);
    },
    async decrypt(id, wrapped, owner, signal) {
      const ciphertext = wrapped.toString("latin1");
      if (!ciphertext.startsWith(`vault:v${versionOf(id)}:`)) {
        throw new KeyServiceError("refused", "was not asked: the wrapped key is of another version");
      }
      const associated = wrapAssociatedData({ ...owner, kekId: id }).toString("base64");
      const data = await call("POST", "decrypt", signal, { ciphertext, associated_data: associated });
      const { plaintext } = Object(data) as Record<string, unknown>;
      if (typeof plaintext !== "string") throw malformed();
      return Buffer.from(plaintext, "base64");
    },
  };
}

async function readToken(path: string): Promise<string> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new KeyServiceError("denied", `cannot be asked: token file ${path} cannot be read (${error.code})`);
  });
  const token = text.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new KeyServiceError("denied", `cannot be asked: token file ${path} holds no token`);
  }
  return token;
}

/** The service's own words are left out: they can repeat what they were sent. */
function refusal(status: number, path: string): KeyServiceError {
  const said = `answered ${status} for ${path}`;
  if (status === 400) return new KeyServiceError("refused", said);
  if (status === 401 || status === 403 || status === 404) return new KeyServiceError("denied", said);
  // 429 throttled, 412 and 472 to 474 a node that lags or stands by, 503 a service that is itself sealed.
  return new KeyServiceError("unavailable", said);
}

function malformed(): KeyServiceError {
  return new KeyServiceError("unavailable", "gave an answer that is none of the transit engine's");
}

function dataOf(body: Buffer): unknown {
  try {
    return (Object(JSON.parse(body.toString("utf8"))) as Record<string, unknown>).data;
  } catch {
    throw malformed();
  } finally {
    body.fill(0);
  }
}
