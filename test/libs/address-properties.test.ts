// The class of any address, against a judge that works by arithmetic where the code has tables.
import { isIPv6 } from "node:net";
import fc from "fast-check";
import { it } from "vitest";
import { classifyAddress, judgeAddresses } from "#libs/addresses.ts";
import { check, hold, timeout } from "../support/properties.ts";

const split = (text: string) => text.split(" ");

const octet = fc.oneof(fc.constantFrom(0, 1, 10, 100, 127, 168, 169, 172, 192, 198, 203, 224, 240, 255), fc.nat(255));
const octets = fc.tuple(octet, fc.oneof(octet, fc.constantFrom(0, 16, 31, 51, 63, 64, 88, 254)), octet, octet);

// From the IANA IPv4 special-purpose registry: first and last address of what is not globally reachable, and 168.63.129.16.
const notGlobalV4 = [
  ["0.0.0.0", "0.255.255.255"],
  ["10.0.0.0", "10.255.255.255"],
  ["100.64.0.0", "100.127.255.255"],
  ["127.0.0.0", "127.255.255.255"],
  ["168.63.129.16", "168.63.129.16"],
  ["169.254.0.0", "169.254.255.255"],
  ["172.16.0.0", "172.31.255.255"],
  ["192.0.0.0", "192.0.0.255"],
  ["192.0.2.0", "192.0.2.255"],
  ["192.88.99.0", "192.88.99.255"],
  ["192.168.0.0", "192.168.255.255"],
  ["198.18.0.0", "198.19.255.255"],
  ["198.51.100.0", "198.51.100.255"],
  ["203.0.113.0", "203.0.113.255"],
  ["224.0.0.0", "255.255.255.255"],
].map(([first = "", last = ""]) => [numberOf(first), numberOf(last)] as const);

function numberOf(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

it("an IPv4 address is global when it lies in no special-purpose range, by arithmetic", { timeout }, () => {
  // Every edge of every range, and its neighbours.
  const edges = notGlobalV4
    .flat()
    .flatMap((edge) => [edge - 1, edge, edge + 1])
    .filter((edge) => edge >= 0 && edge < 2 ** 32);
  const value = fc.oneof(
    octets.map((parts) => numberOf(parts.join("."))),
    fc.constantFrom(...edges),
    fc.nat(0xffffffff),
  );
  check(value, 0.2, (number) => {
    const address = [24, 16, 8, 0].map((shift) => Math.floor(number / 2 ** shift) % 256).join(".");
    const isGlobal = !notGlobalV4.some(([first, last]) => first <= number && number <= last);
    hold(`${address} is judged as by arithmetic`, (classifyAddress(address) === "global") === isGlobal);
    hold(
      `${address} alone decides`,
      (judgeAddresses(["8.8.8.8", address, "2606:4700::1"]).kind === "allow") === isGlobal,
    );
    return isGlobal;
  });
});

const starts = split(
  "0 64:ff9b 100 2000 2001 2001:1 2001:2 2001:10 2001:20 2001:1ff 2001:200 2001:db8 2002 2003 2606:4700 3ffe 3fff 3fff:1000 4000 5f00 fc00 fd00:ec2 fe80 fec0 ff02",
).map((start) => start.split(":").map((group) => Number.parseInt(group, 16)));
const group = fc.oneof(fc.constantFrom(0, 0, 0, 0xffff, 0x5efe, 0x200, 0x7f00), fc.nat(0xffff));
const groups = fc
  .tuple(fc.constantFrom(...starts, []), fc.array(group, { minLength: 8, maxLength: 8 }))
  .map(([start, rest]) => [...start, ...rest].slice(0, 8));

/** One address as people write it: leading zeros, capitals, `::` for any run of zeros, the end as IPv4. */
const spelled = fc.tuple(groups, fc.boolean(), fc.boolean(), fc.nat(7)).map(([parts, padded, dotted, from]) => {
  const words = parts.map((part) => part.toString(16).padStart(padded ? 4 : 1, "0"));
  const [high = 0, low = 0] = parts.slice(6);
  const tail = dotted ? [[high >> 8, high & 255, low >> 8, low & 255].join(".")] : words.slice(6);
  const all = [...words.slice(0, 6), ...tail];
  let run = 0;
  while (from + run < Math.min(6, all.length) && parts[from + run] === 0) run += 1;
  const spelling = run > 0 ? `${all.slice(0, from).join(":")}::${all.slice(from + run).join(":")}` : all.join(":");
  return { parts, spelling: padded ? spelling.toUpperCase() : spelling };
});

it("an IPv6 address is global inside 2000::/3 and outside what is carved from it, however it is written", {
  timeout,
}, () => {
  check(spelled, 0.1, ({ parts, spelling }) => {
    const [first = 0, second = 0, , , fifth = 0, sixth = 0] = parts;
    const isCarved =
      (first === 0x2001 && (second < 0x200 || second === 0xdb8)) ||
      first === 0x2002 ||
      (first === 0x3fff && second < 0x1000);
    const isIsatap = (fifth === 0 || fifth === 0x200) && sixth === 0x5efe;
    const isGlobal = first >= 0x2000 && first < 0x4000 && !isCarved && !isIsatap;
    hold(`${spelling} is an address`, isIPv6(spelling));
    hold(`${spelling} is judged as by arithmetic`, (classifyAddress(spelling) === "global") === isGlobal);
    hold("not with a zone", classifyAddress(`${spelling}%1`) !== "global");
    return isGlobal;
  });
});
