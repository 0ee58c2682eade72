// A credential outside of any vault: the record that an export encrypts and an import takes. Faults name fields, never values.
import { z } from "zod";
import { invalidField } from "#libs/errors.ts";
import type { CredentialMaterial, CredentialRow } from "./credentials.ts";

const schemaName = "deputy-credential/1";

// Postgres takes no NUL, and ids are printed.
const printable = (most: number) =>
  z
    .string("is required")
    .min(1, "is required")
    .max(most, `is longer than ${most}`)
    .regex(/^[^\p{Cc}]+$/u, "has control characters");
const secretText = z.string("must be a text").min(1, "is empty").max(65_536, "is longer than 65536");

const recordShape = z.object({
  schema: z.literal(schemaName, `must be ${schemaName}`),
  project_id: printable(64),
  environment: z.enum(["development", "production"], "must be development or production"),
  external_user_id: printable(250),
  account_id: printable(64),
  app_slug: printable(100),
  oauth_app_id: z.union([z.literal(""), printable(64)], "must be an OAuth app's id").default(""),
  scopes: z.array(printable(1000), "must be a list").max(200, "has more than 200 entries").default([]),
  expire_time: z.iso.datetime({ offset: true, error: "must be a time like 2026-01-01T00:00:00Z" }).optional(),
  access_token: secretText.optional(),
  refresh_token: secretText.optional(),
  fields: z.record(printable(100), z.string("must be a text"), "must be texts by name").default({}),
});

/** One credential with its secrets in the open. */
export type CredentialRecord = z.infer<typeof recordShape>;

/** What is written of a row whose secret is open. State and times are for people; an import judges by itself. */
export function recordOf(row: CredentialRow, { accessToken, refreshToken, fields }: CredentialMaterial) {
  return {
    schema: schemaName,
    project_id: row.projectId,
    environment: row.environment,
    external_user_id: row.externalUserId,
    account_id: row.accountId,
    app_slug: row.appSlug,
    oauth_app_id: row.oauthAppId,
    state: row.state,
    shadow: row.shadow,
    scopes: row.scopes,
    ...(row.expireTime !== null && { expire_time: row.expireTime.toISOString() }),
    create_time: row.createTime.toISOString(),
    ...(accessToken !== undefined && { access_token: accessToken }),
    ...(refreshToken !== undefined && { refresh_token: refreshToken }),
    fields,
  };
}

/** The value as a record, with the schema's name put in where a mapping made it. Throws for the first field that is wrong. */
export function checkRecord(value: unknown): CredentialRecord {
  const { success, data, error } = recordShape.safeParse(value);
  if (success) return data;
  const [issue] = error.issues;
  throw invalidField(issue?.path.join(".") || "record", issue?.path.length ? issue.message : "is not a JSON object");
}

/** Reads a record's JSON text. */
export function parseRecord(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // The parser's own words quote the text, which holds secrets.
    throw invalidField("record", "is not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw invalidField("record", "is not a JSON object");
  return value as Record<string, unknown>;
}
