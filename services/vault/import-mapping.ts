// How another system's records become ours: a YAML file of the operator's, read at start. Each field is a fixed value, or
// taken from a path in the other record, translated or split where that is needed. docs/vault.md has an example.
//
//   environment:   { value: production }
//   app_slug:      { from: provider_config_key, translate: { google-mail: gmail } }
//   scopes:        { from: credentials.raw.scope, split: " " }
//   fields.domain: { from: connection_config.subdomain }
import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { z } from "zod";
import { invalidField } from "#libs/errors.ts";

const plainFields = [
  ...["project_id", "environment", "external_user_id", "account_id", "app_slug", "oauth_app_id"],
  ...["scopes", "expire_time", "access_token", "refresh_token"],
];
const fieldName = z
  .string()
  .refine((name) => plainFields.includes(name) || /^fields\.[\w-]+$/.test(name), "is no field of a credential record");
const rule = z.union([
  z.strictObject({ value: z.union([z.string(), z.array(z.string())]) }),
  z.strictObject({
    from: z.string().min(1),
    /** Other values are refused. */
    translate: z.record(z.string(), z.string()).optional(),
    /** What stands between the parts of a list. */
    split: z.string().min(1).optional(),
  }),
]);
const mappingShape = z.record(fieldName, rule);

/** Makes a record's fields of another system's record. */
export type Mapping = (source: Record<string, unknown>) => Record<string, unknown>;

/** Reads a mapping file. Throws with the file and every line that is wrong. */
export function readMapping(path: string): Mapping {
  const result = mappingShape.safeParse(parse(readFileSync(path, "utf8")));
  if (!result.success) throw new Error(`${path}: ${z.prettifyError(result.error)}`);
  return mappingOf(result.data);
}

function mappingOf(rules: z.infer<typeof mappingShape>): Mapping {
  return (source) => {
    const fields: Record<string, unknown> = {};
    const record: Record<string, unknown> = { schema: "deputy-credential/1", fields };
    for (const [name, one] of Object.entries(rules)) {
      const value = fieldOf(name, one, source);
      if (value === undefined) continue;
      if (name.startsWith("fields.")) fields[name.slice("fields.".length)] = value;
      else record[name] = value;
    }
    return record;
  };
}

function fieldOf(name: string, one: z.infer<typeof rule>, source: unknown): unknown {
  if ("value" in one) return one.value;
  const found = one.from.split(".").reduce<unknown>((part, key) => {
    const isObject = typeof part === "object" && part !== null && Object.hasOwn(part, key);
    return isObject ? (part as Record<string, unknown>)[key] : undefined;
  }, source);
  if (found === undefined || found === null || found === "") return undefined;
  if (name === "expire_time") return timeOf(found);
  if (Array.isArray(found)) return found;
  const text = typeof found === "number" ? String(found) : found;
  if (typeof text !== "string") throw invalidField(name, `${one.from} is neither a text nor a number`);
  if (one.split !== undefined) return text.split(one.split).filter((part) => part !== "");
  if (one.translate === undefined) return text;
  if (!Object.hasOwn(one.translate, text))
    throw invalidField(name, `${one.from} has a value that the mapping does not translate`);
  return one.translate[text];
}

/** Seconds or milliseconds since 1970, or a time as text, as ISO 8601. */
function timeOf(found: unknown): string {
  const number = typeof found === "number" || /^\d+$/.test(String(found)) ? Number(found) : undefined;
  // Seconds reach this in the year 5138, milliseconds did in 1973.
  const date = new Date(number === undefined ? String(found) : number < 1e11 ? number * 1000 : number);
  if (Number.isNaN(date.getTime())) throw invalidField("expire_time", "is no time");
  return date.toISOString();
}
