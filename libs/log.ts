// The only door to the logger: JSON lines on standard output, with the names under which secrets travel redacted as a
// second net. The first net is that no code logs a request, a response or a header.
import { type DestinationStream, type Logger, type LoggerOptions, pino } from "pino";

export type { Logger };

const secretNames = new Set([
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
]);

// A write for each line would cost more than all else about it. So lines leave together, after this time or at this length.
const gatheringMs = 100;
const gatheredLength = 16_384;

/** Makes the process's logger, to standard output unless told otherwise. Level `silent` turns it off. */
export function createLogger(service: string, level: string, destination?: DestinationStream): Logger {
  const options: LoggerOptions = {
    level,
    base: { service, pid: process.pid },
    timestamp: timeField(),
    formatters: { level: (label) => ({ level: label }), log: (line) => redact(line, 2) as Record<string, unknown> },
    serializers: { err: describeError },
  };
  return pino(options, destination ?? standardOutput);
}

/** The time as a field of a line; what is the same for all lines of a second is made once. */
function timeField(): () => string {
  let [second, begin] = [0, ""];
  return () => {
    const nowMs = Date.now();
    const ms = nowMs % 1000;
    if (nowMs - ms !== second) {
      second = nowMs - ms;
      begin = `,"time":"${new Date(second).toISOString().slice(0, -"000Z".length)}`;
    }
    return `${begin}${String(ms).padStart(3, "0")}Z"`;
  };
}

const standardOutput = gatherLines();

/** Standard output in few writes. All lines leave when the process ends by itself; one that is killed loses its last moment. */
function gatherLines(): DestinationStream {
  let lines = "";
  const leave = () => {
    if (lines !== "") process.stdout.write(lines);
    lines = "";
  };
  process.on("exit", leave);
  return {
    write(line) {
      if (lines === "") setTimeout(leave, gatheringMs).unref();
      lines += line;
      if (lines.length >= gatheredLength) leave();
    },
  };
}

/** What stands under a secret's name is not shown, on so many levels. (pino's own redaction, by paths, costs 25 us a line.) */
function redact(fields: Readonly<Record<string, unknown>>, levels: number): Readonly<Record<string, unknown>> {
  return isPlain(fields) ? fields : redacted(fields, levels);
}

// Nearly every line: nothing in it has a secret's name or could hold something that has. It is not copied.
function isPlain(fields: Readonly<Record<string, unknown>>): boolean {
  for (const name in fields) {
    const value = fields[name];
    if (secretNames.has(name) || (typeof value === "object" && value !== null)) return false;
  }
  return true;
}

function redacted(fields: Readonly<Record<string, unknown>>, levels: number): Record<string, unknown> {
  const shown: Record<string, unknown> = {};
  for (const name of Object.keys(fields)) {
    const value = fields[name];
    if (value === undefined) continue;
    if (secretNames.has(name)) shown[name] = "[redacted]";
    else shown[name] = levels > 1 && isRecord(value) ? redact(value, levels - 1) : value;
  }
  return shown;
}

// What has a form of its own in JSON, and an error, which a serializer describes, stay as they are.
function isRecord(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Error) return false;
  return !("toJSON" in value);
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
