// Any method of a service, called without knowing which: what came of it as plain data, for tests that go through all methods.
import { StatusError } from "#libs/errors.ts";
import type { CallOptions, ServiceDefinition } from "#libs/rpc.ts";

/** What came of a call. */
export type Outcome =
  | { readonly kind: "ok"; readonly answer: unknown }
  | { readonly kind: "refused"; readonly code: string; readonly reason: string; readonly message: string };

/** Calls a method: of a stream all answers, unless it is one without an end. */
export async function outcomeOf(
  { definition, client }: { readonly definition: ServiceDefinition; readonly client: object },
  method: string,
  request: object,
  options: CallOptions,
): Promise<Outcome> {
  const call = (client as Record<string, (input: unknown, options: CallOptions) => unknown>)[method];
  if (call === undefined) throw new Error(`no method ${method}`);
  const input = definition.methods[method]?.requestStream ? streamOf(request) : request;
  try {
    const output = call(input, options);
    if (!isStream(output)) return { kind: "ok", answer: await output };
    const answer: unknown[] = [];
    for await (const message of output) {
      answer.push(message);
      // WatchAccounts goes on for ever; what it has to tell ends with the first heartbeat.
      if (method === "watchAccounts" && (message as { account?: unknown }).account === undefined) break;
    }
    return { kind: "ok", answer };
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    return { kind: "refused", code: error.code, reason: error.reason, message: error.message };
  }
}

/**
 * Whether a caller gets in, without anything being done: `admitted`, or the code and reason of the refusal. It asks for two
 * hours, which are refused next, before anybody has looked at the request.
 */
export async function admission(
  service: Parameters<typeof outcomeOf>[0],
  method: string,
  token?: string,
): Promise<string> {
  const options = { deadlineMs: Date.now() + 7_200_000, ...(token !== undefined && { token }) };
  const outcome = await outcomeOf(service, method, {}, options);
  if (outcome.kind === "ok") throw new Error(`${method} took a deadline that is too far`);
  return outcome.reason === "DEADLINE_TOO_FAR" ? "admitted" : `${outcome.code} ${outcome.reason}`;
}

function isStream(output: unknown): output is AsyncIterable<unknown> {
  return typeof output === "object" && output !== null && Symbol.asyncIterator in output;
}

async function* streamOf(request: object): AsyncGenerator<object> {
  yield request;
}
