// A credential that the caller holds and sends along: used for this one request by the app's own rules, kept nowhere.
import { type Catalog, fieldFaults } from "#libs/catalog.ts";
import { invalidFields, StatusError } from "#libs/errors.ts";
import { fillInjection } from "#libs/injection-templates.ts";
import type { AllowedUse } from "./outgoing-request.ts";

/** An app and the values of its credential. Secret: never logged. */
export interface InlineCredential {
  readonly appSlug: string;
  /** Values of the app's custom fields; for an app with OAuth also `access_token`. */
  readonly fields: Readonly<Record<string, string>>;
}

/** What the caller's credential may be used for. Throws naming the field that is wrong, never a value. */
export function inlineUse(
  catalog: Catalog,
  { appSlug, fields }: InlineCredential,
): AllowedUse & { readonly echoAllowed: boolean } {
  const app = catalog.get(appSlug);
  if (app === undefined) throw notInCatalog();
  const isOauth = app.auth === "oauth2";
  const { access_token: accessToken = "", ...others } = fields;
  const custom = isOauth ? others : fields;
  const path = "inline_credential.fields";
  const isMissing = isOauth && accessToken === "";
  const missing = isMissing ? [{ field: `${path}.access_token`, description: "is required" }] : [];
  const violations = [...missing, ...fieldFaults(app.custom_fields, custom, path)];
  if (violations.length > 0) throw invalidFields(violations);
  const defaults = Object.fromEntries(app.custom_fields.map(({ name, default: value }) => [name, value]));
  const values = { fields: { ...defaults, ...custom }, ...(isOauth && { accessToken }) };
  const { enabled, echo_allowed: echoAllowed } = app.proxy;
  return { ...fillInjection(app, values), proxyEnabled: enabled, echoAllowed };
}

/** A project's own apps are not known here: whether one exists is not told either. */
function notInCatalog(): StatusError {
  const message = "No such app in the catalog; inline credentials are for its apps, not for a project's own.";
  return new StatusError("NOT_FOUND", "APP_NOT_FOUND", message);
}
