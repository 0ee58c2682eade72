// Whether an answer refuses the credential itself: 401, or what the app's entry says. Pure. A rule about the body is judged on
// JSON of 64 KiB at most: a refusal is short.
import type { Header } from "#libs/request-headers.ts";

/** One rule of an app; all that is given must hold. */
export interface AuthFailureRule {
  /** 0 for any. */
  readonly status: number;
  readonly headerName: string;
  readonly headerValue: string;
  readonly bodyPath: string;
  readonly bodyValue: string;
}

/** The part of an answer that is judged. */
export interface JudgedAnswer {
  readonly status: number;
  readonly headers: readonly Header[];
  readonly body: Buffer;
}

/** Of a body that is looked into. */
export const maxJudgedBytes = 65_536;

/** Whether the answer says that the credential is no good. */
export function isAuthFailure(answer: JudgedAnswer, rules: readonly AuthFailureRule[]): boolean {
  return answer.status === 401 || rules.some((rule) => headMatches(answer, rule) && bodyMatches(answer, rule));
}

/** Whether only the body can tell. */
export function needsBody(answer: Omit<JudgedAnswer, "body">, rules: readonly AuthFailureRule[]): boolean {
  return answer.status !== 401 && rules.some((rule) => rule.bodyPath !== "" && headMatches(answer, rule));
}

function headMatches({ status, headers }: Omit<JudgedAnswer, "body">, rule: AuthFailureRule): boolean {
  if (rule.status !== 0 && rule.status !== status) return false;
  if (rule.headerName === "") return true;
  const wanted = rule.headerValue.toLowerCase();
  return headers.some(([name, value]) => name === rule.headerName && value.toLowerCase().includes(wanted));
}

function bodyMatches({ body }: JudgedAnswer, { bodyPath, bodyValue }: AuthFailureRule): boolean {
  if (bodyPath === "") return true;
  if (body.length > maxJudgedBytes) return false;
  let found: unknown;
  try {
    found = JSON.parse(body.toString());
  } catch {
    return false;
  }
  for (const part of bodyPath.split(".")) {
    if (typeof found !== "object" || found === null || !Object.hasOwn(found, part)) return false;
    found = (found as Readonly<Record<string, unknown>>)[part];
  }
  return String(found) === bodyValue;
}
