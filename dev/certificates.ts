// Certificates for development: one authority, and for each service a certificate whose URI name
// `spiffe://<trust domain>/<service>` is the identity that the other services check. Never for production: the
// authority's key lies beside the certificates.
import "reflect-metadata";
import { webcrypto } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { isIP } from "node:net";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { writePrivateFile } from "./private-file.ts";

const dayMs = 86_400_000;
const lifetimeDays = 365;
// A stack that is left running for some weeks must not meet the end of its certificates.
const renewBeforeDays = 30;
const keyAlgorithm = { name: "ECDSA", namedCurve: "P-256" } as const;
const signingAlgorithm = { name: "ECDSA", hash: "SHA-256" } as const;
const localHosts = ["localhost", "127.0.0.1", "::1"] as const;

/** What `ensureCertificates` makes certificates for. */
export interface CertificateOptions {
  /** Made when absent, mode 0700. */
  readonly directory: string;
  /** The authority part of every identity, such as `deputy.local`. */
  readonly trustDomain: string;
  /** Names of services: each is the path of an identity and the stem of two files. */
  readonly services: readonly string[];
  /** DNS names and IP addresses that every certificate is good for, beside localhost, 127.0.0.1 and ::1. */
  readonly hosts?: readonly string[];
  readonly now?: () => number;
}

/** Where the files are: `ca.pem`, and per service `<service>.pem` and `<service>-key.pem`. */
export interface CertificateFiles {
  readonly caFile: string;
  readonly services: Readonly<Record<string, { readonly certificateFile: string; readonly keyFile: string }>>;
}

interface Issued {
  readonly certificate: x509.X509Certificate;
  readonly key: CryptoKey;
}

function readIfPresent(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
}

function importKey(pem: string): Promise<CryptoKey> {
  const [der] = x509.PemConverter.decode(pem);
  if (der === undefined) throw new Error("holds no key");
  return webcrypto.subtle.importKey("pkcs8", der, keyAlgorithm, true, ["sign"]);
}

async function readIssued(certificateFile: string, keyFile: string): Promise<Issued | undefined> {
  const [certificatePem, keyPem] = await Promise.all([readIfPresent(certificateFile), readIfPresent(keyFile)]);
  if (certificatePem === undefined || keyPem === undefined) return undefined;
  try {
    return { certificate: new x509.X509Certificate(certificatePem), key: await importKey(keyPem) };
  } catch {
    throw new Error(`${certificateFile} or ${keyFile} is damaged: delete both, they are made anew`);
  }
}

async function writeIssued(certificateFile: string, keyFile: string, { certificate, key }: Issued): Promise<void> {
  const der = await webcrypto.subtle.exportKey("pkcs8", key);
  // The key first: a crash between the two leaves a pair that does not match, which the next run sees and replaces.
  await writePrivateFile(keyFile, `${x509.PemConverter.encode(der, "PRIVATE KEY")}\n`);
  await writePrivateFile(certificateFile, `${certificate.toString("pem")}\n`, 0o644);
}

async function isPair({ certificate, key }: Issued): Promise<boolean> {
  const message = new Uint8Array(32);
  const signature = await webcrypto.subtle.sign(signingAlgorithm, key, message);
  const publicKey = await certificate.publicKey.export(keyAlgorithm, ["verify"]);
  return webcrypto.subtle.verify(signingAlgorithm, publicKey, signature, message);
}

function validity(nowMs: number): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(nowMs - dayMs), notAfter: new Date(nowMs + lifetimeDays * dayMs) };
}

function lastsLongEnough(certificate: x509.X509Certificate, nowMs: number): boolean {
  return certificate.notBefore.getTime() <= nowMs && certificate.notAfter.getTime() - nowMs > renewBeforeDays * dayMs;
}

async function issueAuthority(trustDomain: string, nowMs: number): Promise<Issued> {
  const keys = await webcrypto.subtle.generateKey(keyAlgorithm, true, ["sign", "verify"]);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    ...validity(nowMs),
    name: [{ CN: [`Deputy development CA for ${trustDomain}`] }],
    keys,
    signingAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificate, key: keys.privateKey };
}

async function issueService(
  authority: Issued,
  names: readonly x509.JsonGeneralName[],
  commonName: string,
  nowMs: number,
): Promise<Issued> {
  const keys = await webcrypto.subtle.generateKey(keyAlgorithm, true, ["sign", "verify"]);
  const { notBefore, notAfter } = validity(nowMs);
  const certificate = await x509.X509CertificateGenerator.create({
    notBefore,
    // Not past its issuer, whose end would cut it short anyway: so the 30 days are counted for both.
    notAfter: new Date(Math.min(notAfter.getTime(), authority.certificate.notAfter.getTime())),
    subject: [{ CN: [commonName] }],
    issuer: authority.certificate.subjectName.toJSON(),
    publicKey: keys.publicKey,
    signingKey: authority.key,
    signingAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension([...names]),
      await x509.AuthorityKeyIdentifierExtension.create(authority.certificate),
    ],
  });
  return { certificate, key: keys.privateKey };
}

function hasNames(certificate: x509.X509Certificate, names: readonly x509.JsonGeneralName[]): boolean {
  const extension = certificate.getExtension(x509.SubjectAlternativeNameExtension);
  // Through the extension's own encoding, which is the one place that knows how an address is written.
  return (
    JSON.stringify(extension?.names.toJSON()) ===
    JSON.stringify(new x509.SubjectAlternativeNameExtension([...names]).names.toJSON())
  );
}

function checkOptions({ trustDomain, services }: CertificateOptions): void {
  if (!/^[a-z0-9][a-z0-9.-]{0,252}$/.test(trustDomain)) throw new Error("trustDomain is not a lower-case domain name");
  for (const service of services) {
    if (!/^[a-z][a-z0-9-]{0,62}$/.test(service) || service === "ca") {
      throw new Error(`services: "${service}" is not a lower-case name, or is the authority's own`);
    }
  }
}

/**
 * Makes what is missing, does not match its authority, its key or the names asked for, or ends within 30 days; leaves
 * every other file as it is. Keys have mode 0600.
 */
export async function ensureCertificates(options: CertificateOptions): Promise<CertificateFiles> {
  checkOptions(options);
  const { directory, trustDomain, services, hosts = [], now = Date.now } = options;
  const nowMs = now();
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const caFile = join(directory, "ca.pem");
  const caKeyFile = join(directory, "ca-key.pem");

  let authority = await readIssued(caFile, caKeyFile);
  if (authority === undefined || !lastsLongEnough(authority.certificate, nowMs) || !(await isPair(authority))) {
    authority = await issueAuthority(trustDomain, nowMs);
    await writeIssued(caFile, caKeyFile, authority);
  }

  const files: Record<string, { certificateFile: string; keyFile: string }> = {};
  for (const service of services) {
    const certificateFile = join(directory, `${service}.pem`);
    const keyFile = join(directory, `${service}-key.pem`);
    const names: readonly x509.JsonGeneralName[] = [
      { type: "url", value: `spiffe://${trustDomain}/${service}` },
      ...[...new Set([...localHosts, ...hosts])].map(
        (host) => ({ type: isIP(host) ? "ip" : "dns", value: host }) as const,
      ),
    ];
    const issued = await readIssued(certificateFile, keyFile);
    const good =
      issued !== undefined &&
      lastsLongEnough(issued.certificate, nowMs) &&
      hasNames(issued.certificate, names) &&
      (await isPair(issued)) &&
      (await issued.certificate.verify({ publicKey: authority.certificate, signatureOnly: true }));
    if (!good) await writeIssued(certificateFile, keyFile, await issueService(authority, names, service, nowMs));
    files[service] = { certificateFile, keyFile };
  }
  return { caFile, services: files };
}
