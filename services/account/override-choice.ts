// What an app override may hold, and what it does to a connection: its values come before those that the user gave, and its
// OAuth app is the one to connect with. It is a convenience, no border: a user who makes the request may name no override.
import { type CatalogApp, fieldFaults } from "#libs/catalog.ts";
import { invalidField, invalidFields, notFound } from "#libs/errors.ts";
import { getAppOverride } from "./app-overrides.ts";
import type { AccountDatabase } from "./schema.ts";

type Values = Readonly<Record<string, string>>;

/** What an override gives to a connection; without one, nothing. */
export interface OverrideChoice {
  /** The app that it is of; empty without an override. */
  readonly appSlug: string;
  /** Empty when it chooses none. */
  readonly oauthAppId: string;
  /** Values of fields that the user is not asked for. */
  readonly fields: Values;
}

/** The override that a request names; none when the id is empty. */
export async function chooseOverride(db: AccountDatabase, projectId: string, id: string): Promise<OverrideChoice> {
  if (id === "") return { appSlug: "", oauthAppId: "", fields: {} };
  const { appSlug, oauthAppId, fields } = await getAppOverride(db, { projectId, id });
  return { appSlug, oauthAppId: oauthAppId ?? "", fields };
}

/** The user's values with the override's over them. Throws NOT_FOUND for an override that is not of this app. */
export async function applyOverride(
  db: AccountDatabase,
  projectId: string,
  app: CatalogApp,
  id: string,
  fields: Values,
): Promise<OverrideChoice> {
  const override = await chooseOverride(db, projectId, id);
  if (id !== "" && override.appSlug !== app.slug) throw notFound("app override");
  return { ...override, fields: { ...fields, ...override.fields } };
}

/**
 * Refuses values that an override of the app may not hold: of a secret field, which the user alone may know, and what the app
 * itself would refuse. Repeats no value, nor the name of a field that the app does not have.
 */
export function checkOverrideFields(app: CatalogApp, values: Values): void {
  const given = app.custom_fields.filter(({ name }) => Object.hasOwn(values, name));
  const secret = given.find((field) => field.secret);
  if (secret !== undefined) throw invalidField(`fields.${secret.name}`, "is secret: only the user fills it in");
  const empty = given.find(({ name }) => values[name] === "");
  if (empty !== undefined) throw invalidField(`fields.${empty.name}`, "is empty: leave it out");
  const violations = fieldFaults(given, values, "fields");
  if (violations.length > 0) throw invalidFields(violations);
}
