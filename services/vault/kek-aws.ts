// KEKs in AWS KMS, through the official client, whose requests leave through libs/egress.ts. Credentials come from the
// client's standard chain; of these only the machine's own metadata service is asked directly, and no proxy of the
// environment is used by either.
//
// A KEK's id is its key ARN. The first of the list wraps, all of them unwrap: to rotate, create a key, add it to the end of
// the list everywhere, then move it to the front. AWS's own yearly rotation changes the material behind one ARN and shows
// nobody which is in use, so it cannot be counted; it needs nothing to be done either. A stored ARN that is not in the list
// is never called: else a row could name a key of somebody else's.
//
// What a data key belongs to is the encryption context, which AWS writes to its audit log in the clear: ids, no secrets.
import {
  DecryptCommand,
  DescribeKeyCommand,
  EncryptCommand,
  KMSClient,
  type KMSClientConfig,
} from "@aws-sdk/client-kms";
import type { Egress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { type KekIds, type KeyService, KeyServiceError, unanswered } from "./kek-remote.ts";
import type { DataKeyOwner } from "./keyring.ts";

const keyArn = /^arn:aws[\w-]*:kms:([a-z0-9-]+):\d{12}:key\/[\w-]+$/;
const maxAnswerBytes = 256 * 1024;

// AWS answers throttling with 400, like most faults: the name of the error decides, then the class of the status.
const refusedNames = new Set(["InvalidCiphertextException", "IncorrectKeyException", "ValidationException"]);
const busyNames = new Set(["ThrottlingException", "Throttling", "TooManyRequestsException", "RequestTimeoutException"]);

/** Where the keys are. */
export interface AwsKmsOptions {
  /** Key ARNs of one region; the first is active. */
  readonly keys: readonly string[];
  /** Instead of the region's public endpoint, such as a VPC endpoint. */
  readonly address?: URL;
  readonly egress: Egress;
  readonly timeoutMs: number;
}

/** AWS KMS as a key service. Throws when the keys are not key ARNs of one region. */
export function awsKms({ keys, address, egress, timeoutMs }: AwsKmsOptions): KeyService {
  const regions = new Set(keys.map((key) => keyArn.exec(key)?.[1]));
  const [region] = regions;
  if (regions.size !== 1 || region === undefined)
    throw new Error("DEPUTY_KEK_KEYS: AWS KMS keys are written as key ARNs of one region");
  const client = new KMSClient({
    region,
    maxAttempts: 1,
    requestHandler: handlerOver(egress, timeoutMs),
    ...(address !== undefined && { endpoint: address.href }),
  });

  async function isUsable(key: string, abortSignal: AbortSignal): Promise<boolean> {
    const { KeyMetadata } = await judged(client.send(new DescribeKeyCommand({ KeyId: key }), { abortSignal }));
    if (KeyMetadata?.Arn !== key) throw malformed();
    return KeyMetadata.Enabled === true && KeyMetadata.KeySpec === "SYMMETRIC_DEFAULT";
  }

  return {
    async list(signal): Promise<KekIds> {
      const usable = await Promise.all(keys.map((key) => isUsable(key, signal)));
      const all = keys.filter((_key, index) => usable[index]);
      const [active = ""] = keys;
      if (!all.includes(active)) throw new KeyServiceError("denied", `has ${active} disabled, or not for encryption`);
      return { active, all };
    },
    async encrypt(kekId, plaintext, owner, abortSignal) {
      const input = { KeyId: kekId, Plaintext: plaintext, EncryptionContext: contextOf(kekId, owner) };
      const { CiphertextBlob, KeyId } = await judged(client.send(new EncryptCommand(input), { abortSignal }));
      if (CiphertextBlob === undefined || KeyId !== kekId) throw malformed();
      return Buffer.from(CiphertextBlob);
    },
    async decrypt(kekId, ciphertext, owner, abortSignal) {
      const input = { KeyId: kekId, CiphertextBlob: ciphertext, EncryptionContext: contextOf(kekId, owner) };
      const { Plaintext, KeyId } = await judged(client.send(new DecryptCommand(input), { abortSignal }));
      if (Plaintext === undefined || KeyId !== kekId) throw malformed();
      return Buffer.from(Plaintext.buffer, Plaintext.byteOffset, Plaintext.byteLength);
    },
  };
}

function contextOf(kekId: string, { dataKeyId, accountId }: DataKeyOwner): Record<string, string> {
  return { purpose: "deputy-kek", kekId, dataKeyId, accountId };
}

function malformed(): KeyServiceError {
  return new KeyServiceError("unavailable", "gave an answer that is none to what was asked");
}

/** The client's errors carry the request, so nothing of them goes on but the error's name and status. */
async function judged<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof EgressError) throw unanswered(error);
    const { name, $metadata } = Object(error) as { name?: unknown; $metadata?: { httpStatusCode?: number } };
    const status = $metadata?.httpStatusCode;
    // No status: the credentials could not be had, or the wait was over.
    if (status === undefined) throw new KeyServiceError("unavailable", `could not be asked (${String(name)})`);
    const said = `answered ${status} ${String(name)}`;
    if (refusedNames.has(String(name))) throw new KeyServiceError("refused", said);
    const busy = busyNames.has(String(name)) || status === 429 || status < 400 || status > 499;
    throw new KeyServiceError(busy ? "unavailable" : "denied", said);
  }
}

/** The client's way to send: it wants status, headers and body, and reads the body whole. */
function handlerOver(egress: Egress, timeoutMs: number): NonNullable<KMSClientConfig["requestHandler"]> {
  interface Outgoing {
    readonly method: string;
    readonly protocol: string;
    readonly hostname: string;
    readonly port?: number;
    readonly path: string;
    readonly query?: Readonly<Record<string, string | readonly string[] | null>>;
    readonly headers: Readonly<Record<string, string>>;
    readonly body?: string | Uint8Array;
  }
  return {
    async handle(request: Outgoing, { abortSignal }: { readonly abortSignal?: AbortSignal } = {}) {
      const url = new URL(`${request.protocol}//${request.hostname}${request.port ? `:${request.port}` : ""}`);
      url.pathname = request.path;
      for (const [name, values] of Object.entries(request.query ?? {})) {
        for (const value of [values ?? ""].flat()) url.searchParams.append(name, value);
      }
      const answer = await egress.send({
        url,
        method: request.method,
        headers: Object.entries(request.headers).filter(([name]) => !/^(host|content-length)$/i.test(name)),
        ...(request.body !== undefined && { body: bufferOf(request.body) }),
        ...(abortSignal !== undefined && { signals: [abortSignal] }),
        totalTimeoutMs: timeoutMs,
        maxBodyBytes: maxAnswerBytes,
      });
      const { status: statusCode, body } = answer;
      return { response: { statusCode, headers: Object.fromEntries(answer.headers), body } };
    },
  };
}

function bufferOf(body: string | Uint8Array): Buffer {
  return typeof body === "string" ? Buffer.from(body) : Buffer.from(body.buffer, body.byteOffset, body.byteLength);
}
