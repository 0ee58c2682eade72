// The form of the hosted connect page: which fields an app asks for, how they are shown, and what was typed into them.
import type { FastifyReply } from "fastify";
import { invalidFields, type StatusError } from "#libs/errors.ts";
import { type App, AuthType } from "#proto/deputy/account/v1/apps.ts";
import type { ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { type ScriptData, sendPage, soundOrigins } from "./pages.ts";
import { single } from "./requests.ts";

/** The names that existing clients put into the page's address; the form carries them on. */
export const parameterNames = [
  ...(["token", "app", "oauthAppId", "appOverrideId", "accountId", "oauthScopeProfile"] as const),
  ...(["customOauthClient", "connectLink", "hideClose"] as const),
] as const;
/** Empty where one is not given. */
export type Parameters = Readonly<Record<(typeof parameterNames)[number], string>>;

/** What the page is about, as the account service judges its parameters. */
export interface Described {
  readonly parameters: Parameters;
  readonly token: ValidateConnectTokenResponse;
  readonly app: App;
}

/** Sends the page with the form: empty, or as it was filled in, with what is wrong with it. */
export function sendForm(
  reply: FastifyReply,
  status: number,
  { parameters, token, app }: Described,
  given: URLSearchParams,
  error?: StatusError,
): FastifyReply {
  const faultOf = (name: string) =>
    error?.violations.find(({ field }) => field === `fields.${name}`)?.description ?? "";
  const clientFields =
    parameters.customOauthClient === "true" && app.authType === AuthType.OAUTH ? ownClientFields : [];
  const asked = [...askedFields(app, token), ...clientFields];
  const fields = asked.map(({ name, label, description, defaultValue, secret, optional }) => ({
    name: `field.${name}`,
    label,
    description,
    secret,
    required: !optional && defaultValue === "",
    // A secret is typed in again: what was sent is not sent back.
    value: secret ? "" : (given.get(`field.${name}`) ?? defaultValue),
    error: faultOf(name),
  }));
  const data = {
    projectName: token.projectAppName || "This application",
    supportEmail: token.projectSupportEmail,
    appName: app.name,
    imageUrl: app.imageUrl,
    externalUserId: token.externalUserId,
    accountId: parameters.accountId,
    hideClose: parameters.hideClose === "true",
    script: scriptOf({ parameters, token, app }),
    hasProvider: app.authType === AuthType.OAUTH,
    hidden: parameterNames.map((name) => [name, parameters[name]] as const).filter(([, value]) => value !== ""),
    fields,
    error: error === undefined || fields.some((field) => field.error !== "") ? "" : error.message,
  };
  return sendPage(reply, status, { name: "connect", data }, token.allowedOrigins);
}

// Names with a dot: no field of an app has one.
const ownClientFields = [
  {
    name: "client.id",
    label: "Client ID",
    description: `Of your own OAuth client; its redirect URI is the /oauth/callback of this address.`,
    ...{ defaultValue: "", secret: false, optional: false },
  },
  { name: "client.secret", label: "Client secret", description: "", defaultValue: "", secret: true, optional: true },
];

/** The OAuth client of the user's own that the form brought. */
export function ownClientOf(described: Described, form: URLSearchParams) {
  if (described.parameters.customOauthClient !== "true") return undefined;
  const clientId = single(form, "field.client.id");
  if (clientId === "") throw invalidFields([{ field: "fields.client.id", description: "is required" }]);
  return { clientId, clientSecret: single(form, "field.client.secret") };
}

// With a provider, what is secret is the provider's to ask for; what an override fills is not asked at all.
function askedFields({ customFields, authType }: App, { appOverrideFieldNames }: ValidateConnectTokenResponse) {
  const asked = customFields.filter(({ name }) => !appOverrideFieldNames.includes(name));
  return authType === AuthType.OAUTH ? asked.filter(({ secret }) => !secret) : asked;
}

/** The values of the app's fields that the form brought. */
export function givenValues(described: Described, form: URLSearchParams): Record<string, string> {
  const values = askedFields(described.app, described.token).map(({ name }) => [name, single(form, `field.${name}`)]);
  return Object.fromEntries(values.filter(([, value]) => value !== ""));
}

/** Whether the page stood in a frame of the product's page when the form was sent. */
export function isFramedForm(form: URLSearchParams): boolean {
  return single(form, "framed") === "true";
}

/** Whether pages of the product may frame ours; a link is followed by itself. */
function scriptOf({ parameters, token, app }: Described): ScriptData | undefined {
  const origins = soundOrigins(token.allowedOrigins);
  if (origins.length === 0 || parameters.connectLink === "true") return undefined;
  const provider = String(app.authType === AuthType.OAUTH);
  return { role: "form", origins: JSON.stringify(origins), provider };
}
