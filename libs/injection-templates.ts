// What a request needs to carry a credential: the app's templates filled in. Only the app's entry is a template,
// read once from left to right: a value that looks like a placeholder is put in as it is. A refresh token cannot be named.
import type { CatalogApp } from "./catalog.ts";
import { StatusError } from "./errors.ts";
import { expandBaseUrl } from "./templates.ts";
import { denialError } from "./verdict.ts";

/** The values that templates may name. */
export interface InjectableValues {
  readonly accessToken?: string;
  /** Values of the app's custom fields. */
  readonly fields: Readonly<Record<string, string>>;
}

/** A name and the secret that goes there. */
export interface InjectedValue {
  readonly name: string;
  readonly value: string;
}

/** What to put into a request, and where it may go. */
export interface Injection {
  readonly headers: readonly InjectedValue[];
  readonly query: readonly InjectedValue[];
  readonly baseUrl: string;
  readonly allowedDomains: readonly string[];
  readonly allowedPorts: readonly number[];
  /** False where the base URL is the account's own: a whole URL would take its credential elsewhere. */
  readonly absoluteUrlsAllowed: boolean;
}

/** Fills in the app's templates. FAILED_PRECONDITION when the values do not fit them. */
export function fillInjection({ proxy }: CatalogApp, values: InjectableValues): Injection {
  const base = expandBaseUrl(proxy.base_url, values.fields);
  if (base.kind === "deny") throw denialError(base);
  const where = {
    baseUrl: base.text,
    allowedDomains: proxy.allowed_domains,
    allowedPorts: proxy.allowed_ports,
    absoluteUrlsAllowed: !base.isTemplate,
  };
  // A secret that cannot be used stays here.
  if (!proxy.enabled) return { ...where, headers: [], query: [] };
  const { headers, query, basic } = proxy.inject;
  const fill = (template: string) => fillTemplate(template, values);
  const basicHeader = basic && {
    name: "authorization",
    value: `Basic ${Buffer.from(`${fill(basic.username)}:${fill(basic.password)}`).toString("base64")}`,
  };
  const filled = Object.entries(headers).map(([name, template]) => ({ name, value: fill(template) }));
  return {
    ...where,
    headers: [...filled, ...(basicHeader ? [basicHeader] : [])].map(checkHeader),
    query: Object.entries(query).map(([name, template]) => ({ name, value: fill(template) })),
  };
}

function fillTemplate(template: string, { accessToken, fields }: InjectableValues): string {
  return template.replaceAll(/\{\{([^{}]*)\}\}/g, (_placeholder, inner: string) => {
    const name = /^\s*credential\.([A-Za-z0-9_-]+)\s*$/.exec(inner)?.[1];
    if (name === undefined) throw notInjectable(`The app's entry has a placeholder that is not {{credential.name}}.`);
    const value = name === "access_token" ? accessToken : Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (value === undefined) throw notInjectable(`The account has no value for ${name}.`);
    return value;
  });
}

// A line end in a value would let it become another header.
function checkHeader(header: InjectedValue): InjectedValue {
  if (/^[\t\x20-\x7e]*$/.test(header.value)) return header;
  throw notInjectable(`The value for header ${header.name} has characters that a header cannot carry.`);
}

function notInjectable(message: string): StatusError {
  return new StatusError("FAILED_PRECONDITION", "CREDENTIAL_NOT_INJECTABLE", message);
}
