// The only door to the logger: JSON lines on standard output, with the names under which secrets travel redacted as a
// second net. The first net is that no code logs a request, a response or a header.
import { type DestinationStream, type Logger, type LoggerOptions, pino } from "pino";

export type { Logger };

const secretNames = [
  "access_token",
  "accessToken",
  "api_key",
  "authorization",
  "browserBinding",
  "clientSecret",
  "client_secret",
  "code",
  "connectToken",
  "cookie",
  "credential",
  "fields",
  "password",
  "refreshToken",
  "refresh_token",
  "state",
  "token",
];

/** Makes the process's logger, to standard output unless told otherwise. Level `silent` turns it off. */
export function createLogger(service: string, level: string, destination?: DestinationStream): Logger {
  const options: LoggerOptions = {
    level,
    base: { service, pid: process.pid },
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: (label) => ({ level: label }) },
    redact: { paths: secretNames.flatMap((name) => [name, `*.${name}`]), censor: "[redacted]" },
    serializers: { err: describeError },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}

/** An error as a log line may show it: names, messages and stacks down the chain of causes, and no other property. */
function describeError(error: unknown): unknown {
  if (!(error instanceof Error)) return typeof error;
  const { code } = error as { code?: unknown };
  return {
    type: error.name,
    message: error.message,
    // Not by the name "code", which is redacted.
    ...(typeof code === "string" || typeof code === "number" ? { errorCode: code } : {}),
    stack: error.stack,
    ...(error.cause === undefined ? {} : { cause: describeError(error.cause) }),
  };
}
