// What a project's own app must hold to beyond the catalog's schema. Entries of the catalog are the operator's word; these are
// a tenant's, and sit in processes that serve other tenants too: hosts must be public names, values must not be able to keep a
// process busy, and what could not work at all is told when it is saved rather than when it is used. Where requests go is
// judged again at each use, by the same rules (destination.ts, egress.ts).
import type { CatalogApp, CustomField } from "./catalog.ts";
import { judgeBaseUrl, judgeUrl } from "./destination.ts";
import type { FieldViolation } from "./errors.ts";
import { hostFault } from "./host-names.ts";
import { judgeRequestHeaders } from "./request-headers.ts";
import { expandBaseUrl, sampleFields } from "./templates.ts";

type Faults = readonly FieldViolation[];

const mostFields = 50;

/** All that is wrong with an app that a project brings. `exemptTargets`: `host:port` of the development upstreams. */
export function ownAppFaults(app: CatalogApp, exemptTargets: readonly string[]): Faults {
  return [
    ...generalFaults(app),
    ...fieldFaults(app),
    ...destinationFaults(app, exemptTargets),
    ...injectionFaults(app),
  ];
}

function fault(path: string, description: string): FieldViolation {
  return { field: `definition.${path}`, description };
}

function generalFaults({ development, name, image_url }: CatalogApp): Faults {
  const picture = image_url === "" ? undefined : judgeUrl(image_url);
  return [
    ...(development ? [fault("development", "is for the entries that come along")] : []),
    ...(name.trim() === "" || name.length > 250 ? [fault("name", "must have 1 to 250 characters")] : []),
    ...(picture?.kind === "deny" ? [fault("image_url", picture.message)] : []),
  ];
}

function fieldFaults({ custom_fields }: CatalogApp): Faults {
  const names = custom_fields.map(({ name }) => name);
  return [
    ...(names.length > mostFields ? [fault("custom_fields", `are more than ${mostFields}`)] : []),
    ...custom_fields.flatMap((field, index) => {
      const path = `custom_fields.${index}`;
      return [
        ...(names.indexOf(field.name) < index ? [fault(`${path}.name`, "is there twice")] : []),
        ...(field.secret && field.default !== "" ? [fault(`${path}.default`, "has no place for a secret")] : []),
        ...patternFaults(field, path),
      ];
    }),
  ];
}

// A pattern that backtracks would stop the process for everybody: JavaScript's engine knows no limit. With one repetition of
// one character there is nothing to go back to, and each `|` at most doubles the work.
function patternFaults({ pattern = "" }: CustomField, path: string): Faults {
  // What stands for one character, as one.
  const plain = pattern.replace(/\\[pP]\{[^}]*\}|\\[^1-9kq]/g, "a").replace(/\[[^[\]]*\]/g, "a");
  const isSimple =
    pattern.length <= 500 &&
    !/[\\[\]]|\(\?(?!:)|\)[*+?{]|\{\d{5}/.test(plain) &&
    (plain.match(/[*+?]|\{\d+,\d*\}/g) ?? []).length - (plain.match(/\(\?:/g) ?? []).length <= 1 &&
    (plain.match(/\|/g) ?? []).length <= 3;
  const rule = "may have one repetition, not of a group, up to three |, no look-around and no back-reference";
  return isSimple ? [] : [fault(`${path}.pattern`, rule)];
}

function destinationFaults(app: CatalogApp, exemptTargets: readonly string[]): Faults {
  const { allowed_domains, allowed_ports, base_url } = app.proxy;
  const rules = { allowedDomains: allowed_domains, allowedPorts: allowed_ports, exemptTargets };
  const isExempt = (host: string) => exemptTargets.some((target) => target.split(":")[0] === host);
  const urls = Object.entries({
    "oauth2.authorize.url": app.oauth2?.authorize.url,
    "oauth2.token.url": app.oauth2?.token.url,
    "oauth2.revoke.url": app.oauth2?.revoke?.url,
    "oauth2.identity.url": app.oauth2?.identity?.url,
    // An app can do without: callers then give whole URLs.
    "proxy.base_url": base_url || undefined,
  });
  return [
    ...urls.flatMap(([path, url = ""]) => {
      if (url === "") return [];
      const sample = sampleFields(url);
      const unknown = templateFaults(app, path, Object.keys(sample));
      if (unknown.length > 0) return unknown;
      const verdict =
        path === "proxy.base_url"
          ? judgeBaseUrl({ ...rules, baseUrl: url }, sample)
          : judgeEndpoint(url, sample, { allowedPorts: allowed_ports, exemptTargets });
      return verdict.kind === "deny" ? [fault(path, verdict.message)] : [];
    }),
    ...allowed_domains.flatMap((entry, index) => {
      const host = entry.replace(/^\*\./, "").toLowerCase();
      const denial = isExempt(host) ? undefined : hostFault(host);
      return denial === undefined ? [] : [fault(`proxy.allowed_domains.${index}`, denial.message)];
    }),
    ...allowed_ports.flatMap((port, index) =>
      port === 443 || port >= 1024 ? [] : [fault(`proxy.allowed_ports.${index}`, "must be 443, or 1024 and above")],
    ),
  ];
}

function judgeEndpoint(
  url: string,
  sample: Readonly<Record<string, string>>,
  rules: { readonly allowedPorts: readonly number[]; readonly exemptTargets: readonly string[] },
) {
  const expanded = expandBaseUrl(url, sample);
  return expanded.kind === "deny" ? expanded : judgeUrl(expanded.text, rules);
}

function templateFaults({ custom_fields }: CatalogApp, path: string, names: readonly string[]): Faults {
  return names.flatMap((name) => {
    const field = custom_fields.find((one) => one.name === name);
    if (field === undefined) return [fault(path, "has a placeholder that names no field of this app")];
    return field.secret ? [fault(path, `has custom_fields.${name}, which is secret, in a URL`)] : [];
  });
}

function injectionFaults(app: CatalogApp): Faults {
  const { headers, query, basic } = app.proxy.inject;
  const names = Object.keys(headers).flatMap((name) => {
    // Callers may send none, but some providers take their session so.
    const judged = name.toLowerCase() === "cookie" ? undefined : judgeRequestHeaders([[name, ""]], []);
    return judged?.kind === "deny" ? [fault(`proxy.inject.headers.${name}`, judged.message)] : [];
  });
  const templates: readonly (readonly [string, string])[] = [
    ...Object.entries(headers).map(([name, text]) => [`headers.${name}`, text] as const),
    ...Object.entries(query).map(([name, text]) => [`query.${name}`, text] as const),
    ...Object.entries(basic ?? {}).map(([name, text]) => [`basic.${name}`, text] as const),
  ];
  const known = [...app.custom_fields.map(({ name }) => name), ...(app.auth === "oauth2" ? ["access_token"] : [])];
  return [
    ...names,
    ...templates.flatMap(([path, text]) => {
      const placeholders = [...text.matchAll(/\{\{([^{}]*)\}\}/g)].map(([, inner = ""]) => inner.trim());
      const isKnown = placeholders.every((inner) => known.some((name) => inner === `credential.${name}`));
      if (!isKnown) return [fault(`proxy.inject.${path}`, "has a placeholder that names no value of the credential")];
      const isPlain = /^[\t\x20-\x7e]*$/.test(text) || !path.startsWith("headers.");
      return isPlain ? [] : [fault(`proxy.inject.${path}`, "has characters that a header cannot carry")];
    }),
  ];
}
