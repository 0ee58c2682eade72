// When a credential is refreshed, and when it is tried again. Pure.

// A token whose end is this near is refreshed before it is leased: it would end on its way.
const dueMarginMs = 5_000;

const backoffSeconds = { first: 5, most: 15 * 60 };

// A daily quota is believed; a provider that asks for years has made a mistake, which must not cost the account.
const maxRetryAfterSeconds = 24 * 3600;

/** Whether the access token has ended, or is about to. */
export function isDue({ expireTime, readTime }: { expireTime: Date | null; readTime: Date }): boolean {
  return expireTime !== null && expireTime.getTime() - readTime.getTime() < dueMarginMs;
}

// An upstream that refuses every token must not make its provider see a refresh for each request.
const forcedEveryMs = 60_000;

/**
 * Whether a refresh that an upstream's refusal asks for is left out: the token is fresh, so that another would not help, or
 * refreshes fail, and the next is sent at its time. The row says so to all vault processes, so that the limit is one for all
 * proxies.
 */
export function isForcedTooSoon(row: { failures: number; lastRefreshTime: Date | null; readTime: Date }): boolean {
  const ageMs = row.readTime.getTime() - (row.lastRefreshTime?.getTime() ?? 0);
  return row.failures > 0 || ageMs < forcedEveryMs;
}

/** Whether the access token can still be used. */
export function isValid({ expireTime, readTime }: { expireTime: Date | null; readTime: Date }): boolean {
  return expireTime === null || expireTime > readTime;
}

/**
 * After how many seconds a new token is due: early enough that a refresh that fails is not seen by anybody, and spread, so
 * that accounts connected together are not refreshed together. `random` gives 0 to 1.
 */
export function refreshAfterSeconds(lifetimeSeconds: number, minAgeSeconds: number, random: () => number): number {
  if (lifetimeSeconds <= 600) return Math.max(minAgeSeconds, lifetimeSeconds / 2);
  const margin = Math.max(300, lifetimeSeconds * 0.2) + lifetimeSeconds * 0.1 * random();
  return Math.max(minAgeSeconds, lifetimeSeconds - margin);
}

/** How long to wait after the n-th failure in a row, give or take a fifth; never shorter than the provider asked for, up to a day. */
export function backoffAfter(failures: number, random: () => number, retryAfterSeconds = 0): number {
  const wait = Math.min(backoffSeconds.first * 2 ** (failures - 1), backoffSeconds.most);
  return Math.max(Math.min(retryAfterSeconds, maxRetryAfterSeconds), wait * (0.8 + 0.4 * random()));
}

// What an idle grant has left when it is kept alive: a day off, or a weekend of a provider, must not cost it.
const idleShare = 0.7;

/** After how many seconds a grant is refreshed so that its provider does not end it for want of use; spread over a tenth. */
export function keepAliveAfterSeconds(idleSeconds: number, random: () => number): number {
  return idleSeconds * (idleShare - 0.1 * random());
}

// Later than a grant is kept alive: only of one that could not be is the user told.
const noticeShare = 0.2;
const mostNoticeSeconds = 7 * 24 * 3600;

/** How long before its end the user of a grant should be asked to connect again, when it lasts so long in all. */
export function noticeSeconds(lifeSeconds: number): number {
  return Math.min(mostNoticeSeconds, lifeSeconds * noticeShare);
}

// Before the access token's end, when a grant whose answer was lost is tried: late, because the try may end what still works.
const lostGrantMarginSeconds = 60;

/** For how long a grant whose answer was lost is left alone: while its access token works; 0 when that ends within a minute. */
export function lostGrantWait({ expireTime, readTime }: { expireTime: Date | null; readTime: Date }): number {
  if (expireTime === null) return backoffSeconds.most;
  return Math.max(0, (expireTime.getTime() - readTime.getTime()) / 1000 - lostGrantMarginSeconds);
}
