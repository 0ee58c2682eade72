// KEKs in Google Cloud KMS, through the official client in its REST mode, whose requests leave through libs/egress.ts: one
// way out, no proxy of the environment, and limits that hold. Credentials are Google's application default credentials; only
// the machine's own metadata server is asked directly.
//
// A KEK's id is the full name of a key version, so it can be told how many rows each version still holds. The service picks
// the version of a ciphertext by itself; that it is the id's is held by the associated data, which names it.
//
// Both ways carry CRC32C sums, as Google asks for: a data key damaged on its way would be lost for good. A sum that does not
// hold is an answer to ask for again, not a row that was changed.
import { KeyManagementServiceClient } from "@google-cloud/kms";
import type { Egress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { wrapAssociatedData } from "./envelope.ts";
import { type KekIds, type KeyService, KeyServiceError, unanswered } from "./kek-remote.ts";

const keyName = /^projects\/[\w.:-]+\/locations\/[\w-]+\/keyRings\/[\w-]+\/cryptoKeys\/[\w-]+$/;
const maxAnswerBytes = 1024 * 1024;

/** Where the key is. */
export interface GoogleKmsOptions {
  /** `projects/.../locations/.../keyRings/.../cryptoKeys/...`. */
  readonly key: string;
  /** Instead of Google's public endpoint, such as a private one. */
  readonly address?: URL;
  readonly egress: Egress;
  readonly timeoutMs: number;
}

/** Google Cloud KMS as a key service. Throws when the key is not the name of a crypto key. */
export function googleKms({ key, address, egress, timeoutMs }: GoogleKmsOptions): KeyService {
  if (!keyName.test(key)) {
    throw new Error(
      "DEPUTY_KEK_KEYS: a Google Cloud KMS key is written projects/P/locations/L/keyRings/R/cryptoKeys/K",
    );
  }
  const open = () =>
    new KeyManagementServiceClient({
      fallback: true,
      // Told, else the client runs gcloud and asks the metadata server to find out.
      projectId: key.split("/")[1] ?? "",
      clientOptions: { transporterOptions: { fetchImplementation: fetchOver(egress, timeoutMs) } },
      ...(address !== undefined && { apiEndpoint: address.hostname, port: Number(address.port || 443) }),
    });
  let kept: KeyManagementServiceClient | undefined;

  /**
   * A client with credentials. Its own methods leave a rejection unhandled when there are none, which would end the
   * process, and it never looks for them again.
   */
  async function ready(): Promise<KeyManagementServiceClient> {
    kept ??= open();
    const client = kept;
    try {
      await client.initialize();
      return client;
    } catch {
      if (kept === client) kept = undefined;
      throw new KeyServiceError("unavailable", "could not be asked: no credentials were found");
    }
  }

  const options = { timeout: timeoutMs };

  return {
    async list(): Promise<KekIds> {
      const client = await ready();
      const filter = "state=ENABLED";
      const [[cryptoKey], [versions]] = await judged(
        Promise.all([
          client.getCryptoKey({ name: key }, options),
          client.listCryptoKeyVersions({ parent: key, filter }, options),
        ]),
      );
      const all = versions.flatMap(({ name }) => name ?? []);
      const active = cryptoKey.primary?.name ?? "";
      if (!all.includes(active)) throw new KeyServiceError("denied", `has no enabled primary version of ${key}`);
      return { active, all };
    },
    async encrypt(kekId, plaintext, owner) {
      const client = await ready();
      const additionalAuthenticatedData = wrapAssociatedData({ ...owner, kekId });
      const [answer] = await judged(
        client.encrypt(
          {
            name: kekId,
            plaintext,
            plaintextCrc32c: { value: crc32c(plaintext) },
            additionalAuthenticatedData,
            additionalAuthenticatedDataCrc32c: { value: crc32c(additionalAuthenticatedData) },
          },
          options,
        ),
      );
      if (!answer.verifiedPlaintextCrc32c || !answer.verifiedAdditionalAuthenticatedDataCrc32c) throw damaged();
      if (answer.name !== kekId) throw damaged();
      return checked(answer.ciphertext, answer.ciphertextCrc32c);
    },
    async decrypt(kekId, ciphertext, owner) {
      const client = await ready();
      const additionalAuthenticatedData = wrapAssociatedData({ ...owner, kekId });
      const [answer] = await judged(
        client.decrypt(
          {
            name: key,
            ciphertext,
            ciphertextCrc32c: { value: crc32c(ciphertext) },
            additionalAuthenticatedData,
            additionalAuthenticatedDataCrc32c: { value: crc32c(additionalAuthenticatedData) },
          },
          options,
        ),
      );
      return checked(answer.plaintext, answer.plaintextCrc32c);
    },
  };
}

/** The bytes of an answer, when their sum holds. */
function checked(bytes: Uint8Array | string | null | undefined, sum: { value?: unknown } | null | undefined): Buffer {
  const buffer = typeof bytes === "string" ? Buffer.from(bytes, "base64") : Buffer.from(bytes ?? []);
  if (sum?.value === undefined || Number(sum.value) !== crc32c(buffer)) throw damaged();
  return buffer;
}

function damaged(): KeyServiceError {
  return new KeyServiceError("unavailable", "sent or received damaged data: a CRC32C sum or a name does not match");
}

/** The client's errors carry the request, so nothing of them goes on but status and code. */
async function judged<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof KeyServiceError) throw error;
    throw faultOf(error);
  }
}

function faultOf(error: unknown): KeyServiceError {
  const { name, cause, status, message } = Object(error) as Readonly<Record<string, unknown>>;
  if (cause instanceof EgressError) return unanswered(cause);
  // No status: the credentials could not be had.
  if (typeof status !== "number") return new KeyServiceError("unavailable", `could not be asked (${String(name)})`);
  const code = codeOf(String(message));
  const said = `answered ${status} ${code}`;
  // 400 is also said of a disabled version (FAILED_PRECONDITION) and, by the token endpoint, of credentials.
  if (code === "INVALID_ARGUMENT") return new KeyServiceError("refused", said);
  const busy = status === 408 || status === 429 || status < 400 || status > 499;
  return new KeyServiceError(busy ? "unavailable" : "denied", said);
}

/** The name of a gRPC code out of an answer's whole text, which the client gives as its error's message. */
function codeOf(text: string): string {
  try {
    const { error } = Object(JSON.parse(text)) as { error?: unknown };
    const { status } = Object(error) as { status?: unknown };
    return typeof status === "string" && /^[A-Z_]{1,40}$/.test(status) ? status : "without a code";
  } catch {
    return "without a code";
  }
}

/** The client's way to send. */
function fetchOver(egress: Egress, timeoutMs: number): typeof fetch {
  return async (input, init = {}) => {
    const url = new URL(input instanceof Request ? input.url : input);
    const { body } = init;
    const answer = await egress.send({
      url,
      method: init.method ?? "GET",
      headers: [...new Headers(init.headers)].filter(([name]) => !/^(host|content-length)$/.test(name)),
      ...(body != null && { body: Buffer.from(await new Response(body).arrayBuffer()) }),
      ...(init.signal && { signals: [init.signal] }),
      totalTimeoutMs: timeoutMs,
      maxBodyBytes: maxAnswerBytes,
    });
    const { status, headers } = answer;
    const content = status === 204 || status === 304 ? null : new Uint8Array(answer.body);
    return new Response(content, { status, headers: headers.map(([name, value]): [string, string] => [name, value]) });
  };
}

const crcTable = Uint32Array.from({ length: 256 }, (_, index) => {
  let sum = index;
  for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? (sum >>> 1) ^ 0x82f63b78 : sum >>> 1;
  return sum;
});

/** CRC32C (Castagnoli), which node:zlib does not have. */
export function crc32c(bytes: Uint8Array): number {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = (sum >>> 8) ^ (crcTable[(sum ^ byte) & 0xff] ?? 0);
  return (sum ^ 0xffffffff) >>> 0;
}
