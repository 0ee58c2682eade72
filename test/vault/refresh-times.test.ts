// When credentials are refreshed and tried again, by table.
import { expect, test } from "vitest";
import {
  backoffAfter,
  isDue,
  isValid,
  keepAliveAfterSeconds,
  lostGrantWait,
  noticeSeconds,
  refreshAfterSeconds,
} from "../../services/vault/refresh-times.ts";

const [least, most] = [() => 0, () => 1];

test.each([
  ["ten minutes: at half its life", 600, 0, 300, 300],
  ["one hour: 12 minutes early, spread over 6", 3600, 0, 2520, 2880],
  ["twenty minutes: 5 minutes early at least", 1200, 0, 780, 900],
  ["one day", 86_400, 0, 60_480, 69_120],
  ["never before the app lets us", 3600, 3000, 3000, 3000],
])("a token of %s", (_name, lifetime, minAge, earliest, latest) => {
  expect(refreshAfterSeconds(lifetime, minAge, most)).toBe(earliest);
  expect(refreshAfterSeconds(lifetime, minAge, least)).toBe(latest);
});

test("a failure is tried again after 5 s, then twice as long each time, up to a quarter of an hour", () => {
  const middle = () => 0.5;
  expect([1, 2, 3, 20].map((failures) => backoffAfter(failures, middle))).toEqual([5, 10, 20, 900]);
  expect(backoffAfter(1, least)).toBe(4);
  expect(backoffAfter(1, most)).toBeCloseTo(6);
  expect(backoffAfter(1, middle, 60)).toBe(60);
  expect(backoffAfter(1, middle, 1e9)).toBe(86_400);
});

test("a token is due five seconds before its end, valid until then, and never due without an end", () => {
  const readTime = new Date(1_000_000);
  const ending = (ms: number) => ({ readTime, expireTime: new Date(1_000_000 + ms) });
  expect([5_000, 4_999].map((ms) => isDue(ending(ms)))).toEqual([false, true]);
  expect([1, 0].map((ms) => isValid(ending(ms)))).toEqual([true, false]);
  expect([isDue({ readTime, expireTime: null }), isValid({ readTime, expireTime: null })]).toEqual([false, true]);
});

test("a grant that nobody uses is refreshed when a good part of its idle time is left", () => {
  expect(keepAliveAfterSeconds(1000, least)).toBeCloseTo(700);
  expect(keepAliveAfterSeconds(1000, most)).toBeCloseTo(600);
});

test("the user of a grant is told seven days before its end, or a fifth of its life where that is shorter", () => {
  const day = 86_400;
  expect([3600, 10 * day, 35 * day, 90 * day].map(noticeSeconds)).toEqual([720, 2 * day, 7 * day, 7 * day]);
  // Of one that is kept alive in time nobody is told.
  for (const idle of [3600, 10 * day, 90 * day]) {
    expect(keepAliveAfterSeconds(idle, least)).toBeLessThan(idle - noticeSeconds(idle));
  }
});

test("a grant whose answer was lost is left alone until a minute before its token's end", () => {
  const readTime = new Date(1_000_000);
  const ending = (seconds: number) => lostGrantWait({ readTime, expireTime: new Date(1_000_000 + seconds * 1000) });
  expect([600, 61, 60, -5].map(ending)).toEqual([540, 1, 0, 0]);
  expect(lostGrantWait({ readTime, expireTime: null })).toBe(900);
});
