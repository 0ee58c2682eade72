// Which host names can belong to a public service. Not which addresses they have: that is judged at each connection.
import { isIPv4 } from "node:net";
import { type Denial, forbidden, malformed } from "./verdict.ts";

// RFC 6761 and its registry, the ICANN reservations, and names that private networks use by habit: none is ever a public API.
const specialUseDomains = new Set(
  "alt arpa example internal invalid local localhost onion test corp home intranet lan localdomain mail private svc".split(
    " ",
  ),
);

/** What keeps a host, in lower case and without port, from being a public DNS name. */
export function hostFault(host: string): Denial | undefined {
  if (host.startsWith("[") || isIPv4(host)) {
    return forbidden("IP_LITERAL", "The host is an address: use a name.");
  }
  if (host.endsWith(".")) {
    return malformed("HOST_TRAILING_DOT", "The host ends with a dot.");
  }
  const labels = host.split(".");
  if (host.length > 253 || !labels.every(isLabel)) {
    return malformed("HOST_NOT_A_NAME", "The host is not a DNS name of letters, digits and hyphens.");
  }
  if (labels.length < 2) {
    return forbidden("HOST_SINGLE_LABEL", "The host is a name without a dot, which is local to a network.");
  }
  return specialUseDomains.has(labels.at(-1) ?? "")
    ? forbidden("HOST_SPECIAL_USE", "The host is under a special-use domain, which is never public.")
    : undefined;
}

/** Whether a text is one DNS label of letters, digits and inner hyphens. */
export function isLabel(text: string): boolean {
  return /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/.test(text);
}
