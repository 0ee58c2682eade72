// The app catalog: one YAML file per app says how its accounts authenticate, where its endpoints are, and how a request gets
// its credential. Read and checked whole at start; a fault names the file and the field. Data only: nothing in a file runs.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { z } from "zod";
import { type FieldViolation, notFound } from "./errors.ts";

const name = z.string().regex(/^[a-z][a-z0-9_]{0,99}$/, "must be lower-case letters, digits and _");
const endpointUrl = z.url({ protocol: /^https$/ });
const parameters = z.record(z.string(), z.string()).default({});

const customField = z.strictObject({
  name,
  label: z.string(),
  description: z.string().default(""),
  default: z.string().default(""),
  optional: z.boolean().default(false),
  /** Sealed, never shown, and typed in as a password. */
  secret: z.boolean().default(false),
  /** A regular expression that the whole value must match. */
  pattern: z.string().refine(isPattern, "is not a regular expression").optional(),
  /** The values allowed. */
  values: z.array(z.string()).optional(),
});

/** An answer of the token endpoint: by its status, by the name of its error, or by both. */
const answerRule = z
  .strictObject({ status: z.int().min(100).max(599).optional(), error: z.string().min(1).optional() })
  .refine(({ status, error }) => status !== undefined || error !== undefined, "needs a status, an error, or both");

const errorClasses = z.strictObject({
  /** Where the error's name stands in the JSON answer, like `error.code`. */
  name_at: z.string().default("error"),
  /** The grant is over: the user has to connect again. */
  terminal: z.array(answerRule).default([]),
  /** It passes by itself. */
  transient: z.array(answerRule).default([]),
  /** The OAuth client is at fault, and with it every account: none of them is marked. */
  integration: z.array(answerRule).default([]),
});

/** RFC 7009, but for what an entry says otherwise. */
const revocation = z.strictObject({
  url: endpointUrl,
  method: z.enum(["POST", "DELETE", "GET"]).default("POST"),
  /** Of the body; GET has none and puts the same into the query. */
  content_type: z.enum(["form", "json"]).default("form"),
  /** As at the token endpoint unless given; `bearer`: the token that is to be revoked authenticates the request. */
  client_authentication: z.enum(["client_secret_basic", "client_secret_post", "none", "bearer"]).optional(),
  /** What the parameter with the token is called. */
  token_parameter: z.string().min(1).default("token"),
  parameters,
  /** The kinds of token that it takes. */
  tokens: z
    .array(z.enum(["refresh_token", "access_token"]))
    .min(1)
    .default(["refresh_token", "access_token"]),
});

const oauth2 = z.strictObject({
  /** RFC 9207: when given, the redirect must carry it as `iss`. */
  issuer: z.string().optional(),
  authorize: z.strictObject({ url: endpointUrl, parameters }),
  token: z.strictObject({
    url: endpointUrl,
    client_authentication: z.enum(["client_secret_basic", "client_secret_post", "none"]).default("client_secret_basic"),
    parameters,
    /** How many refreshes ahead of time each vault process may send; callers who wait for one are not counted. */
    refreshes_per_minute: z.int().positive().optional(),
  }),
  /** What answers mean where they differ from the standard. An error goes before a status alone. */
  errors: errorClasses.prefault({}),
  /** Without it a grant cannot be revoked at the provider. */
  revoke: revocation.optional(),
  /** One GET after connecting that names the account: `name` is a path in the JSON answer like `user.email`. */
  identity: z.strictObject({ url: endpointUrl, name: z.string() }).optional(),
  scopes: z.array(z.string()).default([]),
  scope_separator: z.string().default(" "),
  scope_profiles: z.array(z.strictObject({ name: z.string(), scopes: z.array(z.string()) })).default([]),
});

const lifecycle = z.strictObject({
  /** `strict`: a refresh token works once, and a second use kills the grant. */
  rotation: z.enum(["strict", "none"]).default("strict"),
  /** For how long the token before still works. */
  reuse_grace_seconds: z.int().nonnegative().default(0),
  min_refresh_age_seconds: z.int().nonnegative().default(0),
  refresh_idle_seconds: z.int().positive().optional(),
  refresh_absolute_seconds: z.int().positive().optional(),
  access_dies_on_refresh: z.boolean().default(false),
  /** What a revocation ends at the provider: the token, the grant, or all grants of the user to this client. */
  revoke_effect: z.enum(["token", "grant", "user_client"]).default("grant"),
});

/** An answer that refuses the credential. All that is given must hold. */
const authFailureRule = z
  .strictObject({
    status: z.int().min(100).max(599).optional(),
    /** A header, and what its value must hold, in any case. */
    header: z.strictObject({ name: z.string().toLowerCase(), value: z.string().default("") }).optional(),
    /** A path in the JSON answer like `error.code`, and the text that must stand there. */
    body: z.strictObject({ at: z.string().min(1), value: z.string() }).optional(),
  })
  .refine((rule) => Object.values(rule).some((part) => part !== undefined), "needs a status, a header or a body");

const proxy = z.strictObject({
  enabled: z.boolean(),
  /** What relative URLs are joined to; may hold `{{custom_fields.name}}`. */
  base_url: z.string(),
  allowed_domains: z.array(z.string()).default([]),
  allowed_ports: z.array(z.int().min(1).max(65_535)).default([]),
  /** Where the credential goes: `{{credential.access_token}}` or `{{credential.<custom field>}}`. */
  inject: z.strictObject({
    headers: z.record(z.string(), z.string()).default({}),
    query: z.record(z.string(), z.string()).default({}),
    basic: z.strictObject({ username: z.string(), password: z.string() }).optional(),
  }),
  /** Answers beside 401 by which the upstream refuses the credential. */
  auth_failure: z.array(authFailureRule).default([]),
  /** Whether answers may show the credential; they are masked otherwise. */
  echo_allowed: z.boolean().default(false),
});

/** One entry. Files of the catalog and definitions of projects are held to it alike. */
export const entrySchema = z
  .strictObject({
    slug: name,
    name: z.string(),
    description: z.string().default(""),
    image_url: z.string().default(""),
    categories: z.array(z.string()).default([]),
    featured_weight: z.int().default(0),
    /** Left out in production mode. */
    development: z.boolean().default(false),
    auth: z.enum(["oauth2", "keys", "none"]),
    custom_fields: z.array(customField).default([]),
    oauth2: oauth2.optional(),
    lifecycle: lifecycle.prefault({}),
    proxy,
  })
  .refine((entry) => (entry.auth === "oauth2") === (entry.oauth2 !== undefined), "oauth2 goes with `auth: oauth2`")
  // Whose grants a revocation would end is known by the user's name at the provider alone.
  .refine(
    ({ lifecycle: { revoke_effect }, oauth2: part }) => revoke_effect !== "user_client" || part?.identity !== undefined,
    "`revoke_effect: user_client` needs oauth2.identity, whose name must tell the provider's users apart",
  );

/** One app of the catalog. */
export type CatalogApp = z.infer<typeof entrySchema>;

/** What the answers of an app's token endpoint mean. */
export type ErrorClasses = z.infer<typeof errorClasses>;

/** One value that a user fills in to connect an app. */
export type CustomField = z.infer<typeof customField>;

/** All apps by slug. */
export type Catalog = ReadonlyMap<string, CatalogApp>;

/** Reads every `.yaml` file of a folder. Throws with the file and every field that is wrong. */
export function loadCatalog(directory: string, { production }: { production: boolean }): Catalog {
  const files = readdirSync(directory).filter((file) => file.endsWith(".yaml"));
  const apps = files.map((file) => {
    const result = entrySchema.safeParse(parse(readFileSync(join(directory, file), "utf8")));
    if (!result.success) throw new Error(`${join(directory, file)}: ${z.prettifyError(result.error)}`);
    if (`${result.data.slug}.yaml` !== file) throw new Error(`${join(directory, file)}: slug is ${result.data.slug}`);
    return result.data;
  });
  return new Map(apps.filter((entry) => !(production && entry.development)).map((entry) => [entry.slug, entry]));
}

/** The app with this slug. */
export function getApp(catalog: Catalog, slug: string): CatalogApp {
  const found = catalog.get(slug);
  if (found === undefined) throw notFound("app");
  return found;
}

/**
 * What is wrong with values for an app's custom fields, which stand at `path` in the request. Repeats no value, and no name
 * that the app does not know: somebody may have put the key there.
 */
export function fieldFaults(
  fields: readonly CustomField[],
  values: Readonly<Record<string, string>>,
  path: string,
): readonly FieldViolation[] {
  const isUnknown = Object.keys(values).some((key) => !fields.some((field) => field.name === key));
  return [
    ...(isUnknown ? [{ field: path, description: "has a name that is not a field of this app" }] : []),
    ...fields.flatMap((field) => {
      const description = valueFault(field, values[field.name] ?? field.default);
      return description === undefined ? [] : [{ field: `${path}.${field.name}`, description }];
    }),
  ];
}

function valueFault(field: CustomField, value: string): string | undefined {
  if (value === "") return field.optional ? undefined : "is required";
  if (field.values !== undefined && !field.values.includes(value)) return `must be one of ${field.values.join(", ")}`;
  const matches = field.pattern === undefined || wholly(field.pattern).test(value);
  return matches ? undefined : "has not the form that this app asks for";
}

function wholly(pattern: string): RegExp {
  return new RegExp(`^(?:${pattern})$`, "v");
}

function isPattern(text: string): boolean {
  try {
    return wholly(text) instanceof RegExp;
  } catch {
    return false;
  }
}
