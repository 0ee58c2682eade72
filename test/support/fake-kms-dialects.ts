// The wire formats of fake-kms.ts, as the true services have them: paths, headers, bodies, statuses and names of faults. What
// is not authenticated as the provider asks for is refused, and what is not part of the dialect has no answer.
import { createPublicKey, verify } from "node:crypto";
import { crc32c } from "../../services/vault/kek-gcp.ts";
import type { Dialect, KmsAnswer, KmsKeys, Operation } from "./fake-kms.ts";

const bytes = (text: unknown) => Buffer.from(String(text ?? ""), "base64");
const operations: Readonly<Record<string, Operation>> = { encrypt: "encrypt", decrypt: "decrypt", keys: "list" };

/** The transit engine at `transit/`, with the key `deputy`; `token` gives the one that is good now. */
export function transitDialect(token: () => string): Dialect {
  const errors = (status: number, text: string): KmsAnswer => ({ status, body: { errors: [text] } });
  return {
    read({ method, path, headers }) {
      const [, operation = ""] = /^\/v1\/transit\/(keys|encrypt|decrypt)\/deputy$/.exec(path) ?? [];
      const known = operations[operation];
      if (known === undefined || method !== (known === "list" ? "GET" : "POST")) return errors(404, "no handler");
      return headers["x-vault-token"] === token() ? known : errors(403, "permission denied");
    },
    answer(operation, { body }, keys) {
      if (operation === "list") {
        const [least = 0] = keys.enabled();
        const entries = Array.from({ length: keys.newest() }, (_, index) => [String(index + 1), 1_767_225_600]);
        const about = { type: "aes256-gcm96", derived: false, latest_version: keys.newest() };
        return {
          status: 200,
          body: { data: { ...about, min_decryption_version: least, keys: Object.fromEntries(entries) } },
        };
      }
      const associated = bytes(body.associated_data);
      if (operation === "encrypt") {
        const version = Number(body.key_version ?? keys.newest());
        const sealed = keys.encrypt(version, bytes(body.plaintext), associated).subarray(1).toString("base64");
        return { status: 200, body: { data: { ciphertext: `vault:v${version}:${sealed}`, key_version: version } } };
      }
      const [, version, sealed] = /^vault:v(\d+):(.*)$/.exec(String(body.ciphertext)) ?? [];
      if (!keys.enabled().includes(Number(version)))
        return errors(400, "ciphertext version is disallowed by policy (too old)");
      const plaintext = keys.decrypt(Buffer.concat([Buffer.from([Number(version)]), bytes(sealed)]), associated);
      if (plaintext === undefined) return errors(400, "cipher: message authentication failed");
      return { status: 200, body: { data: { plaintext: plaintext.toString("base64") } } };
    },
    refuse: (why) =>
      why === "throttle"
        ? errors(429, "request path quota exceeded")
        : why === "deny"
          ? errors(403, "1 error occurred:\n\t* permission denied\n\n")
          : errors(500, "internal error"),
  };
}

/** AWS JSON 1.1. Version n of the key is the n-th ARN: a manual rotation is another key. */
export function awsDialect(arnOf: (version: number) => string, accessKeyId: string): Dialect {
  const fault = (status: number, name: string): KmsAnswer => ({
    status,
    headers: { "content-type": "application/x-amz-json-1.1", "x-amzn-requestid": "5f3a" },
    body: { __type: name, message: `${name}: as told` },
  });
  const targets: Readonly<Record<string, Operation>> = {
    "TrentService.Encrypt": "encrypt",
    "TrentService.Decrypt": "decrypt",
    "TrentService.DescribeKey": "list",
  };
  const signed = new RegExp(
    `^AWS4-HMAC-SHA256 Credential=${accessKeyId}/\\d{8}/eu-central-1/kms/aws4_request, SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, Signature=[0-9a-f]{64}$`,
  );

  function act(operation: Operation, body: Readonly<Record<string, unknown>>, keys: KmsKeys): KmsAnswer {
    const version = Array.from({ length: keys.newest() }, (_, index) => index + 1).find((n) => arnOf(n) === body.KeyId);
    if (version === undefined) return fault(400, "NotFoundException");
    const enabled = keys.enabled().includes(version);
    const ok = (answer: object): KmsAnswer => ({ ...fault(200, ""), body: answer });
    const context = Object.entries(Object(body.EncryptionContext)).toSorted();
    const associated = Buffer.from(JSON.stringify(context));
    if (operation === "list") {
      const metadata = { KeyId: arnOf(version).split("/")[1], Arn: arnOf(version), Enabled: enabled };
      return ok({ KeyMetadata: { ...metadata, KeyUsage: "ENCRYPT_DECRYPT", KeySpec: "SYMMETRIC_DEFAULT" } });
    }
    if (!enabled) return fault(400, "DisabledException");
    if (operation === "encrypt") {
      const sealed = keys.encrypt(version, bytes(body.Plaintext), associated).toString("base64");
      return ok({ CiphertextBlob: sealed, KeyId: arnOf(version), EncryptionAlgorithm: "SYMMETRIC_DEFAULT" });
    }
    const ciphertext = bytes(body.CiphertextBlob);
    const plaintext = keys.decrypt(ciphertext, associated);
    if (plaintext === undefined) return fault(400, "InvalidCiphertextException");
    if (ciphertext[0] !== version) return fault(400, "IncorrectKeyException");
    return ok({ Plaintext: plaintext.toString("base64"), KeyId: arnOf(version) });
  }

  return {
    read({ method, path, headers }) {
      if (method !== "POST" || path !== "/" || headers["content-type"] !== "application/x-amz-json-1.1") {
        return fault(400, "SerializationException");
      }
      if (!/^\d{8}T\d{6}Z$/.test(String(headers["x-amz-date"])) || !signed.test(String(headers.authorization))) {
        return fault(400, "IncompleteSignatureException");
      }
      return targets[String(headers["x-amz-target"])] ?? fault(400, "UnknownOperationException");
    },
    answer: (operation, { body }, keys) => act(operation, body, keys),
    refuse: (why) =>
      why === "throttle"
        ? fault(400, "ThrottlingException")
        : why === "deny"
          ? fault(400, "AccessDeniedException")
          : fault(500, "KMSInternalException"),
  };
}

/** Google's REST mapping, for one crypto key; callers sign in with a token that their service account's key has signed. */
export function googleDialect(key: string, publicKeyPem: string): Dialect {
  const names: Readonly<Record<number, string>> = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
  };
  const fault = (status: number, name = names[status]): KmsAnswer => ({
    status,
    body: { error: { code: status, message: "As told.", status: name } },
  });
  const versionName = (version: number) => `${key}/cryptoKeyVersions/${version}`;

  function isSignedIn(authorization: string | undefined): boolean {
    const [head = "", claims = "", signature = ""] = (authorization ?? "").replace(/^Bearer /, "").split(".");
    const { exp = 0 } = JSON.parse(Buffer.from(claims, "base64url").toString() || "{}") as { exp?: number };
    const signer = createPublicKey(publicKeyPem);
    const signed = verify("sha256", Buffer.from(`${head}.${claims}`), signer, Buffer.from(signature, "base64url"));
    return signed && exp * 1000 > Date.now();
  }

  return {
    read({ method, path, headers }) {
      if (!isSignedIn(headers.authorization)) return fault(401);
      const [route = ""] = path.split("?");
      const [, operation = ""] = /:(encrypt|decrypt)$/.exec(route) ?? [];
      if (route.startsWith(`/v1/${key}`)) return operations[operation] ?? (method === "GET" ? "list" : fault(404));
      return fault(404);
    },
    answer(operation, { path, body }, keys) {
      const [route = ""] = path.split("?");
      if (operation === "list") {
        const primary = { name: versionName(keys.newest()), state: "ENABLED" };
        if (!route.endsWith("/cryptoKeyVersions")) {
          return { status: 200, body: { name: key, purpose: "ENCRYPT_DECRYPT", primary } };
        }
        if (!decodeURIComponent(path).includes("filter=state=ENABLED")) return fault(400);
        const cryptoKeyVersions = keys.enabled().map((version) => ({ name: versionName(version), state: "ENABLED" }));
        return { status: 200, body: { cryptoKeyVersions, totalSize: cryptoKeyVersions.length } };
      }
      const associated = bytes(body.additionalAuthenticatedData);
      if (Number(body.additionalAuthenticatedDataCrc32c) !== crc32c(associated)) return fault(400);
      if (operation === "encrypt") {
        const version = Number(/\/cryptoKeyVersions\/(\d+):/.exec(route)?.[1] ?? keys.newest());
        if (Number(body.plaintextCrc32c) !== crc32c(bytes(body.plaintext))) return fault(400);
        const sealed = keys.encrypt(version, bytes(body.plaintext), associated);
        const sums = { verifiedPlaintextCrc32c: true, verifiedAdditionalAuthenticatedDataCrc32c: true };
        const ciphertext = { ciphertext: sealed.toString("base64"), ciphertextCrc32c: String(crc32c(sealed)) };
        return { status: 200, body: { name: versionName(version), ...ciphertext, ...sums } };
      }
      const ciphertext = bytes(body.ciphertext);
      if (Number(body.ciphertextCrc32c) !== crc32c(ciphertext)) return fault(400);
      const version = ciphertext[0] ?? 0;
      if (version <= keys.newest() && version > 0 && !keys.enabled().includes(version)) {
        return fault(400, "FAILED_PRECONDITION");
      }
      const plaintext = keys.decrypt(ciphertext, associated);
      if (plaintext === undefined || route !== `/v1/${key}:decrypt`) return fault(400);
      const sum = { plaintextCrc32c: String(crc32c(plaintext)) };
      return { status: 200, body: { plaintext: plaintext.toString("base64"), ...sum } };
    },
    refuse: (why) => fault(why === "throttle" ? 429 : why === "deny" ? 403 : 503),
  };
}
