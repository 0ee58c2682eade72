// Which addresses may be dialled, beyond the vectors.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { classifyAddress, judgeAddresses, parseCidrs } from "#libs/addresses.ts";

const everything = parseCidrs(["0.0.0.0/0", "::/0"]);

describe("classifyAddress", () => {
  it.each([
    ["168.63.129.16", "metadata"],
    ["168.63.129.17", "global"],
    ["223.255.255.255", "global"],
    ["64:ff9b::8.8.8.8", "nat64"],
    ["2002:808:808::1", "6to4"],
    ["2001::1", "teredo"],
    ["2001:0:ffff::1", "teredo"],
    ["::8.8.8.8", "v4-compatible"],
    ["::FFFF:127.0.0.1", "v4-mapped"],
    ["2a00:1450::200:5efe:808:808", "isatap"],
    ["2a00:1450:4001:80b::200e", "global"],
    ["3ffe::1", "global"],
    ["fe80::1", "link-local"],
    ["127.1", "not-an-ip"],
    ["[::1]", "not-an-ip"],
    ["", "not-an-ip"],
  ])("%s is %s", (address, expected) => {
    expect(classifyAddress(address)).toBe(expected);
  });

  it("finds no IPv6 address global whose embedded IPv4 part could be dialled as such", () => {
    fc.assert(
      fc.property(
        fc.ipV4(),
        fc.constantFrom("::ffff:", "::", "64:ff9b::", "::ffff:0:", "2606:4700::5efe:"),
        (v4, prefix) => {
          expect(classifyAddress(prefix + v4)).not.toBe("global");
        },
      ),
    );
  });

  it("has an answer for any text", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.ipV4Extended(), fc.ipV6()), (text) => {
        expect(typeof classifyAddress(text)).toBe("string");
      }),
      { numRuns: 3000 },
    );
  });
});

describe("judgeAddresses", () => {
  it("opens private ranges that the operator lists, and no others", () => {
    const privateRanges = parseCidrs(["10.1.0.0/16", "fd12::/32"]);
    expect(judgeAddresses(["10.1.2.3", "fd12::5", "8.8.8.8"], { privateRanges }).kind).toBe("allow");
    expect(judgeAddresses(["10.2.0.1"], { privateRanges }).kind).toBe("deny");
    expect(judgeAddresses(["10.1.2.3"]).kind).toBe("deny");
  });

  it.each([
    "127.0.0.1",
    "::1",
    "169.254.169.254",
    "fe80::1",
    "0.0.0.0",
    "224.0.0.1",
    "::ffff:10.0.0.1",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
  ])("opens %s for no CIDR range", (address) => {
    expect(judgeAddresses([address], { privateRanges: everything })).toMatchObject({ code: "PERMISSION_DENIED" });
  });

  it("lets an exempt target be loopback, and nothing else that is not public", () => {
    expect(judgeAddresses(["127.0.0.1", "::1"], { loopbackAllowed: true }).kind).toBe("allow");
    expect(judgeAddresses(["127.0.0.1", "10.0.0.1"], { loopbackAllowed: true }).kind).toBe("deny");
    expect(judgeAddresses(["169.254.169.254"], { loopbackAllowed: true }).kind).toBe("deny");
  });

  it("allows only when every answer is public, wherever the bad one stands", () => {
    fc.assert(
      fc.property(fc.array(fc.ipV4(), { minLength: 1, maxLength: 6 }), (addresses) => {
        const isPublic = addresses.every((address) => classifyAddress(address) === "global");
        expect(judgeAddresses(addresses).kind).toBe(isPublic ? "allow" : "deny");
      }),
      { numRuns: 2000 },
    );
  });

  it("reads no more than 64 answers", () => {
    expect(judgeAddresses(Array<string>(64).fill("8.8.8.8")).kind).toBe("allow");
    expect(judgeAddresses(Array<string>(65).fill("8.8.8.8"))).toMatchObject({ rule: "TOO_MANY_ADDRESSES" });
  });
});

it("parseCidrs names the range that it cannot read", () => {
  for (const range of ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "fe80::1%eth0/64", "localhost/8"]) {
    expect(() => parseCidrs(["10.0.0.0/8", range])).toThrow(`"${range}"`);
  }
});
