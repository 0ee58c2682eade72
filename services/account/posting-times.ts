// When a failed posting is made again: after 5 s, 30 s, 2 min, 10 min, 30 min, 1 h, 2 h, 3 h and then every 4 h, each give or take a
// fifth, and once more when 24 h have passed; then it is given up. A receiver that says by `Retry-After` when to come again is
// believed, up to four hours. Pure.

const waitSeconds = [5, 30, 120, 600, 1_800, 3_600, 7_200, 10_800] as const;
const lastWaitSeconds = 14_400;

/** When a posting is made again after so many attempts, and not before the receiver wants it. `random` gives 0 to 1. */
export function retryTime(
  { attempts, retryAfterSeconds }: { readonly attempts: number; readonly retryAfterSeconds: number },
  expireTime: Date,
  time: Date,
  random: () => number,
): Date {
  const seconds = (waitSeconds[attempts - 1] ?? lastWaitSeconds) * (0.8 + 0.4 * random());
  const retry = time.getTime() + Math.max(seconds, Math.min(retryAfterSeconds, lastWaitSeconds)) * 1000;
  return new Date(Math.min(retry, expireTime.getTime()));
}

/** The seconds that `Retry-After` asks for: a number, or a time (RFC 9110, 10.2.3); 0 for none, and for what says nothing. */
export function readRetryAfter(value: string | undefined, nowMs: number): number {
  if (value === undefined) return 0;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - nowMs) / 1000;
  return seconds > 0 ? seconds : 0;
}
