// Which IP addresses may be dialled: all answers for a name must be globally reachable by the IANA special-purpose
// registries, or lie in a private range that the operator has opened. One bad answer refuses the name, so that a resolver
// that mixes good and bad addresses gains nothing.
import { BlockList, isIPv4, isIPv6 } from "node:net";
import { type Denial, forbidden } from "./verdict.ts";

// First match wins, so a range stands before the range that contains it.
const ipv4Classes = [
  ["0.0.0.0/8", "this-network"],
  ["10.0.0.0/8", "private"],
  ["100.64.0.0/10", "cgnat"],
  ["127.0.0.0/8", "loopback"],
  ["168.63.129.16/32", "metadata"],
  ["169.254.0.0/16", "link-local"],
  ["172.16.0.0/12", "private"],
  ["192.0.0.0/24", "ietf-protocol"],
  ["192.0.2.0/24", "documentation"],
  ["192.88.99.0/24", "6to4-relay"],
  ["192.168.0.0/16", "private"],
  ["198.18.0.0/15", "benchmark"],
  ["198.51.100.0/24", "documentation"],
  ["203.0.113.0/24", "documentation"],
  ["224.0.0.0/4", "multicast"],
  ["240.0.0.0/4", "reserved"],
] as const;

const ipv6Classes = [
  ["::/128", "unspecified"],
  ["::1/128", "loopback"],
  ["::ffff:0:0/96", "v4-mapped"],
  ["::ffff:0:0:0/96", "siit"],
  ["::/96", "v4-compatible"],
  ["64:ff9b::/96", "nat64"],
  ["64:ff9b:1::/48", "nat64-local"],
  ["100::/64", "discard"],
  ["2001::/32", "teredo"],
  ["2001:2::/48", "benchmark"],
  ["2001:10::/28", "orchid"],
  ["2001:20::/28", "orchid"],
  ["2001::/23", "ietf-protocol"],
  ["2001:db8::/32", "documentation"],
  ["2002::/16", "6to4"],
  ["3fff::/20", "documentation"],
  ["5f00::/16", "srv6"],
  ["fc00::/7", "ula"],
  ["fe80::/10", "link-local"],
  ["fec0::/10", "site-local"],
  ["ff00::/8", "multicast"],
] as const;

// Services that hand out a machine's own credentials from inside ranges that an operator may otherwise open.
const metadataAddresses = blockListOf(["100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128"]);

const openable: readonly AddressClass[] = ["private", "cgnat", "ula"];

// No honest name has more; reading on would only cost time.
const maxAddresses = 64;

/** What an address is for; only `global` may be dialled without further ado. */
export type AddressClass =
  | (typeof ipv4Classes)[number][1]
  | (typeof ipv6Classes)[number][1]
  | "isatap"
  | "not-2000::/3"
  | "zone-id"
  | "not-an-ip"
  | "global";

/** What the operator has opened beyond the global addresses. */
export interface AddressRules {
  /** From `parseCidrs`; opens private ranges only, never loopback, link-local or metadata. */
  readonly privateRanges?: BlockList;
  /** Development and tests only, for a listed host and port. */
  readonly loopbackAllowed?: boolean;
}

const ipv4Table = ipv4Classes.map(([range, name]) => ({ name, ranges: blockListOf([range]) }));
const ipv6Table = ipv6Classes.map(([range, name]) => ({ name, ranges: blockListOf([range]) }));
const ipv6Global = blockListOf(["2000::/3"]);

/** The class of one address as text. Anything that is not exactly one canonical address is `not-an-ip`. */
export function classifyAddress(address: string): AddressClass {
  if (isIPv4(address)) {
    return ipv4Table.find((row) => row.ranges.check(address, "ipv4"))?.name ?? "global";
  }
  if (!isIPv6(address)) {
    return "not-an-ip";
  }
  if (address.includes("%")) {
    return "zone-id";
  }
  const special = ipv6Table.find((row) => row.ranges.check(address, "ipv6"))?.name;
  if (special !== undefined) {
    return special;
  }
  if (!ipv6Global.check(address, "ipv6")) {
    return "not-2000::/3";
  }
  return carriesIsatap(address) ? "isatap" : "global";
}

/** Judges every answer for a host. Nothing is dialled unless all of them pass. */
export function judgeAddresses(
  addresses: readonly string[],
  rules: AddressRules = {},
): { readonly kind: "allow"; readonly addresses: readonly string[] } | Denial {
  if (addresses.length === 0) {
    return { kind: "deny", code: "UNAVAILABLE", rule: "NO_ADDRESS", message: "The upstream's host has no address." };
  }
  if (addresses.length > maxAddresses) {
    return forbidden("TOO_MANY_ADDRESSES", `The upstream's host has more than ${maxAddresses} addresses.`);
  }
  for (const address of addresses) {
    const found = classifyAddress(address);
    if (found !== "global" && !isOpened(address, found, rules)) {
      return forbidden(
        "ADDRESS_NOT_ALLOWED",
        `The upstream's host resolves to an address that is not public (${found}).`,
      );
    }
  }
  return { kind: "allow", addresses };
}

/** Reads CIDR ranges such as `10.1.0.0/16`; throws a RangeError that names the faulty one. */
export function parseCidrs(ranges: readonly string[]): BlockList {
  return blockListOf(ranges);
}

function isOpened(address: string, found: AddressClass, rules: AddressRules): boolean {
  if (found === "loopback") {
    return rules.loopbackAllowed === true;
  }
  const family = isIPv4(address) ? "ipv4" : "ipv6";
  return (
    openable.includes(found) &&
    !metadataAddresses.check(address, family) &&
    (rules.privateRanges?.check(address, family) ?? false)
  );
}

function blockListOf(ranges: readonly string[]): BlockList {
  const list = new BlockList();
  for (const range of ranges) {
    const [, base = "", bits = ""] = /^([^/]+)\/(\d{1,3})$/.exec(range) ?? [];
    const family = isIPv4(base) ? "ipv4" : "ipv6";
    const isAddress = isIPv4(base) || (isIPv6(base) && !base.includes("%"));
    if (!isAddress || Number(bits) > (family === "ipv4" ? 32 : 128)) {
      throw new RangeError(`"${range}" is not a CIDR range such as 10.1.0.0/16 or fd12:3456::/32.`);
    }
    list.addSubnet(base, Number(bits), family);
  }
  return list;
}

// An ISATAP interface identifier (RFC 5214) embeds an IPv4 address under any prefix, so no table row can name it.
function carriesIsatap(address: string): boolean {
  const canonical = new URL(`http://[${address}]`).hostname.slice(1, -1);
  const [left = "", right = ""] = canonical.split("::");
  const head = left.split(":").filter((group) => group !== "");
  const tail = right.split(":").filter((group) => group !== "");
  const groups = [...head, ...Array<string>(8 - head.length - tail.length).fill("0"), ...tail];
  return (groups[4] === "0" || groups[4] === "200") && groups[5] === "5efe";
}
