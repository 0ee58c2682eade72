// The person in front of Deputy's connect page, for scripts: opens the link, submits the form, consents at the sandbox
// provider and comes back, with the cookies of one browser.
import { answerConsent } from "./sandbox-consent.ts";

/** What the person does. */
export interface ConnectPageOptions {
  /** `connect_link_url` of a connect token that names an app. */
  readonly link: string;
  /** Who signs in at the provider. */
  readonly name: string;
  readonly decision?: "allow" | "deny";
  /** The authority that the sandbox's certificate comes from, PEM. */
  readonly ca: string;
}

/** Connects an account and gives the last page's answer, unread. Throws when a page before it refuses. */
export async function walkConnectPage({ link, name, decision = "allow", ca }: ConnectPageOptions): Promise<Response> {
  const page = await fetch(link);
  const html = await page.text();
  const action = /<form[^>]*action="([^"]+)"/.exec(html)?.[1]?.replaceAll("&amp;", "&");
  if (!page.ok || action === undefined) throw new Error(`the connect page answered ${page.status}: ${html}`);
  const inputs = html.matchAll(/<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"/g);
  const started = await fetch(new URL(action, link), {
    method: "POST",
    body: new URLSearchParams([...inputs].map(([, input = "", value = ""]) => [input, value])),
    headers: { cookie: cookiesOf(page), origin: new URL(link).origin },
    redirect: "manual",
  });
  const authorizationUrl = started.headers.get("location");
  if (authorizationUrl === null) throw new Error(`its form answered ${started.status}: ${await started.text()}`);
  const callback = await answerConsent({ authorizationUrl, decision, name, ca });
  return await fetch(callback, { headers: { cookie: cookiesOf(started) }, redirect: "manual" });
}

function cookiesOf(answer: Response): string {
  return answer.headers
    .getSetCookie()
    .map((cookie) => cookie.split(";")[0])
    .join("; ");
}
