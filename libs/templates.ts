// Base URLs with an account's custom fields in them: `https://{{custom_fields.subdomain}}.example.com`. Only the app's entry
// is a template; a caller's text is never expanded and no credential can be named. Each value must have the shape that its
// position asks for, so that a value cannot end the host, open a query or climb out of the path. Values are put in once and
// never read again as a template. What comes out is still judged as a URL: this file alone allows nothing.
import { hostFault, isLabel } from "./host-names.ts";
import { type Denial, malformed, notReady } from "./verdict.ts";

type Position = "base URL" | "host" | "end of host" | "label" | "path segment";

/** A base URL with every field put in. */
export interface ExpandedBase {
  readonly kind: "allow";
  readonly text: string;
  /** Whether the app's entry has placeholders: then callers give paths, never whole URLs. */
  readonly isTemplate: boolean;
}

const placeholders = /\{\{([^{}]*)\}\}/g;

/** Puts the account's fields into the app's base URL. Used when an account is saved and again at each request. */
export function expandBaseUrl(template: string, fields: Readonly<Record<string, unknown>>): ExpandedBase | Denial {
  let text = "";
  let end = 0;
  for (const match of template.matchAll(placeholders)) {
    const before = template.slice(0, match.index);
    const after = template.slice(match.index + match[0].length);
    const value = fieldValue(match[1] ?? "", positionOf(before, after), fields);
    if (typeof value !== "string") {
      return value;
    }
    text += template.slice(end, match.index);
    // `https://host/` followed by `/v1` is meant as one slash.
    text += after.startsWith("/") ? value.replace(/\/+$/, "") : value;
    end = match.index + match[0].length;
  }
  if (/[{}]/.test(template.replaceAll(placeholders, ""))) {
    return notReady("TEMPLATE_MALFORMED", "The app's base URL has a brace that belongs to no placeholder.");
  }
  return { kind: "allow", text: text + template.slice(end), isTemplate: end > 0 };
}

const samples: Readonly<Record<Position, string>> = {
  "base URL": "https://tenant.com",
  host: "tenant.com",
  "end of host": "tenant.com",
  label: "tenant",
  "path segment": "tenant",
};

/** For each placeholder a value that its position takes, so that an entry can be judged before there is an account. */
export function sampleFields(template: string): Readonly<Record<string, string>> {
  const entries = [...template.matchAll(placeholders)].map((match) => {
    const after = template.slice(match.index + match[0].length);
    const position = positionOf(template.slice(0, match.index), after);
    return [match[1]?.replace(/^custom_fields\./, "") ?? "", position ? samples[position] : "tenant"] as const;
  });
  return Object.fromEntries(entries);
}

function positionOf(before: string, after: string): Position | undefined {
  const closesAuthority = after === "" || after.startsWith("/") || after.startsWith(":");
  if (before === "") {
    return after === "" || after.startsWith("/") ? "base URL" : undefined;
  }
  if (/^https?:\/\/$/.test(before)) {
    return closesAuthority ? "host" : "label";
  }
  if (/^https?:\/\/[^/?#@:\\]*$/.test(before)) {
    return closesAuthority && before.endsWith(".") ? "end of host" : "label";
  }
  const isInPath = /^(?:https?:\/\/|\{\{)[^/?#]*\/[^?#]*$/.test(before);
  return isInPath ? "path segment" : undefined;
}

function fieldValue(
  placeholder: string,
  position: Position | undefined,
  fields: Readonly<Record<string, unknown>>,
): string | Denial {
  const name = /^custom_fields\.([A-Za-z0-9_-]+)$/.exec(placeholder)?.[1];
  if (name === undefined) {
    return notReady("PLACEHOLDER_NOT_ALLOWED", "The app's base URL may only use {{custom_fields.name}}.");
  }
  if (position === undefined) {
    return notReady("PLACEHOLDER_POSITION", `The app's base URL has custom_fields.${name} where no field may stand.`);
  }
  const value = Object.hasOwn(fields, name) ? fields[name] : undefined;
  if (typeof value !== "string" || value === "") {
    return notReady("FIELD_MISSING", `The account has no value for custom_fields.${name}.`);
  }
  return faultOf(value, position, name) ?? value;
}

function faultOf(value: string, position: Position, name: string): Denial | undefined {
  const fault = (rule: string, shape: string) => malformed(rule, `custom_fields.${name} must be ${shape}.`);
  switch (position) {
    case "label":
      return isLabel(value)
        ? undefined
        : fault("FIELD_NOT_A_LABEL", "one DNS label: letters, digits and inner hyphens");
    case "path segment":
      return /^[A-Za-z0-9._~-]{1,128}$/.test(value) && value !== "." && value !== ".."
        ? undefined
        : fault("FIELD_NOT_A_SEGMENT", "one path segment of up to 128 letters, digits and . _ ~ -");
    case "host": {
      const found = hostFault(value.toLowerCase());
      return found && { ...found, message: `custom_fields.${name}: ${found.message}` };
    }
    case "end of host":
      return value.split(".").every(isLabel)
        ? undefined
        : fault("FIELD_NOT_A_HOST", "DNS labels with dots between them");
    case "base URL":
      return /[{}]/.test(value) ? fault("FIELD_NOT_A_URL", "a URL without braces") : undefined;
  }
}
