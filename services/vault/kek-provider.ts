// Which KEK provider a vault has, by its settings. The remote ones get an egress of their own: where a key service is, is the
// operator's word and no user's, so it may be at a private address, and at the named address even on loopback (an agent
// beside the vault). Accounts' traffic gains nothing by that: it has another egress with its own rules.
// A provider's client is loaded when it is chosen: the clouds' cost 50 MB and 0.2 s.
import type { Config } from "#libs/config.ts";
import { type Egress, openEgress } from "#libs/egress.ts";
import { type KeyService, type KeyServiceTimes, keyServiceTimes, remoteKeks } from "./kek-remote.ts";
import { fileKeyring, type KekProvider } from "./keyring.ts";

/** What says where KEKs live, for the table on top of main.ts. */
export const kekSettings = {
  DEPUTY_KEK_PROVIDER: {
    kind: "text",
    default: "file",
    help: "Where key-encryption keys live: file, transit, aws-kms or google-kms.",
  },
  DEPUTY_KEYRING_FILE: { kind: "path", default: "", help: "file: the keyring, mode 0400." },
  DEPUTY_KEK_KEYS: {
    kind: "list",
    default: "",
    help: "transit: <mount>/<key>. google-kms: the crypto key's name. aws-kms: key ARNs, the active one first.",
  },
  DEPUTY_KEK_ADDRESS: {
    kind: "url",
    default: "",
    help: "transit: the server, https. aws-kms, google-kms: an endpoint other than the public one.",
  },
  DEPUTY_KEK_TOKEN_FILE: { kind: "path", default: "", help: "transit: a file with the token, read for each call." },
  DEPUTY_KEK_CA_FILE: { kind: "file", default: "", help: "Authorities trusted for DEPUTY_KEK_ADDRESS, PEM." },
} as const;

type KekConfig = Config<typeof kekSettings>;

const privateRanges = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/** Opens the provider that the settings name. Throws an error that names the setting when they do not fit together. */
export async function openKekProvider(
  config: KekConfig,
  { now, times = keyServiceTimes }: { now(): number; readonly times?: KeyServiceTimes },
): Promise<{ readonly provider: KekProvider; close(): Promise<void> }> {
  if (config.DEPUTY_KEK_PROVIDER === "file") {
    return { provider: fileKeyring({ path: required(config, "DEPUTY_KEYRING_FILE") }), close: async () => undefined };
  }
  const address = addressOf(config);
  const extraCa = config.DEPUTY_KEK_CA_FILE;
  const egress = openEgress({
    allowedPrivateCidrs: privateRanges,
    ...(address !== undefined && { exemptTargets: [`${address.hostname}:${address.port || 443}`] }),
    ...(extraCa !== "" && { extraCa }),
  });
  const common = { egress, timeoutMs: times.attemptMs, ...(address !== undefined && { address }) };
  const provider = remoteKeks(await keyService(config, common), { now, times });
  return { provider, close: () => egress.close() };
}

async function keyService(
  config: KekConfig,
  common: { readonly egress: Egress; readonly timeoutMs: number; readonly address?: URL },
): Promise<KeyService> {
  switch (config.DEPUTY_KEK_PROVIDER) {
    case "transit": {
      const address = new URL(required(config, "DEPUTY_KEK_ADDRESS"));
      const [key, tokenFile] = [onlyKey(config), required(config, "DEPUTY_KEK_TOKEN_FILE")];
      return (await import("./kek-transit.ts")).transit({ ...common, address, key, tokenFile });
    }
    case "aws-kms":
      return (await import("./kek-aws.ts")).awsKms({ ...common, keys: keysOf(config) });
    case "google-kms":
      return (await import("./kek-gcp.ts")).googleKms({ ...common, key: onlyKey(config) });
    default:
      throw new Error("DEPUTY_KEK_PROVIDER is none of file, transit, aws-kms, google-kms.");
  }
}

function required(
  config: KekConfig,
  name: "DEPUTY_KEYRING_FILE" | "DEPUTY_KEK_ADDRESS" | "DEPUTY_KEK_TOKEN_FILE",
): string {
  if (config[name] === "")
    throw new Error(`${name} is required with DEPUTY_KEK_PROVIDER=${config.DEPUTY_KEK_PROVIDER}.`);
  return config[name];
}

function keysOf({ DEPUTY_KEK_KEYS: keys, DEPUTY_KEK_PROVIDER: provider }: KekConfig): readonly string[] {
  if (keys.length === 0) throw new Error(`DEPUTY_KEK_KEYS is required with DEPUTY_KEK_PROVIDER=${provider}.`);
  return keys;
}

/** These services keep the versions of a key by themselves. */
function onlyKey(config: KekConfig): string {
  const [key = "", ...others] = keysOf(config);
  if (others.length > 0)
    throw new Error(`DEPUTY_KEK_KEYS takes one key with DEPUTY_KEK_PROVIDER=${config.DEPUTY_KEK_PROVIDER}.`);
  return key;
}

function addressOf({ DEPUTY_KEK_ADDRESS: text }: KekConfig): URL | undefined {
  if (text === "") return undefined;
  const address = new URL(text);
  if (address.protocol !== "https:") throw new Error("DEPUTY_KEK_ADDRESS must be an https address.");
  return address;
}
