// Ties the end of an OAuth connection to the browser that began it: a random value in a cookie, which the account service
// demands again. Without it, somebody could have a victim's browser finish a connection that he began himself, and so get
// the victim's account under his own user. The cookie is named after the connection's `state`, so that several connections
// in one browser do not disturb each other, and it stays until its end, so that a reload shows the same result.
import type { FastifyRequest } from "fastify";
import { digest, randomText } from "#libs/ids.ts";

const framedMark = ".framed";

/** A new binding. It also keeps whether a frame waits to be told: nothing else outlives the provider's pages. */
export function newBinding(isFramed: boolean): string {
  return randomText() + (isFramed ? framedMark : "");
}

/** Whether the connection was begun from a frame. */
export function isFramedBinding(binding: string): boolean {
  return binding.endsWith(framedMark);
}

/** The `set-cookie` value for a connection that was begun. */
export function bindingCookie(state: string, binding: string, maxAgeSeconds: number, gatewayUrl: string): string {
  const secure = gatewayUrl.startsWith("https:") ? "; Secure" : "";
  const age = `Max-Age=${Math.max(0, Math.floor(maxAgeSeconds))}`;
  return `${cookieName(state, gatewayUrl)}=${binding}; Path=/; ${age}; HttpOnly; SameSite=Lax${secure}`;
}

/** The binding that this browser holds for a connection. */
export function findBinding({ headers }: FastifyRequest, state: string, gatewayUrl: string): string | undefined {
  const prefix = `${cookieName(state, gatewayUrl)}=`;
  const cookies = (headers.cookie ?? "").split(";").map((cookie) => cookie.trim());
  return cookies.find((cookie) => cookie.startsWith(prefix))?.slice(prefix.length);
}

// `__Host-` keeps pages of sibling domains from planting one; browsers take it over https only.
function cookieName(state: string, gatewayUrl: string): string {
  const prefix = gatewayUrl.startsWith("https:") ? "__Host-" : "";
  return `${prefix}deputy_connection_${digest(state).toString("hex").slice(0, 16)}`;
}
