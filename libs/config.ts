// The only door to the process's environment. A service lists its settings in one table on top of its main.ts; they are
// read once, every fault is reported at once, and `--help` prints the table. A secret is the path of a file, never a value;
// its content is revealed where it is used, so that a config can be printed.
import { readFileSync } from "node:fs";
import { Secret } from "./secret.ts";

/** How one setting is read. Durations are written `500ms`, `30s`, `5m`, `2h`, `7d` and become milliseconds. */
interface Setting<Kind extends keyof Readers> {
  readonly kind: Kind;
  /** What applies when the variable is not set; without one the setting is required. `""` stands for "not given". */
  readonly default?: string;
  /** One sentence for the table of settings. */
  readonly help: string;
}

interface Readers {
  text: string;
  list: readonly string[];
  integer: number;
  boolean: boolean;
  duration: number;
  /** `host:port`. */
  address: string;
  url: string;
  /** A path whose content is read at start: certificates. */
  file: string;
  /** A path whose content is a secret: read at start, without its last line end. One that is not given is empty. */
  secret: Secret;
  /** A path that is only passed on. */
  path: string;
}

/** A table of settings: names of environment variables with their kinds. */
export type Settings = Readonly<Record<string, { [Kind in keyof Readers]: Setting<Kind> }[keyof Readers]>>;

/** What `readConfig` gives: each name with the value of its kind. */
export type Config<S extends Settings> = { readonly [Name in keyof S]: Readers[S[Name]["kind"]] };

const durationUnits: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

const readers: { readonly [Kind in keyof Readers]: (text: string) => Readers[Kind] } = {
  text: (text) => text,
  path: (text) => text,
  list: (text) => text.split(",").flatMap((item) => item.trim() || []),
  integer: (text) => {
    if (!/^-?\d{1,15}$/.test(text)) throw new Error("is not a whole number");
    return Number(text);
  },
  boolean: (text) => {
    if (text !== "true" && text !== "false") throw new Error("is neither true nor false");
    return text === "true";
  },
  duration: (text) => {
    const [, amount, unit] = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text) ?? [];
    if (amount === undefined || unit === undefined) throw new Error("is not a duration like 500ms, 30s, 5m, 2h or 7d");
    return Number(amount) * (durationUnits[unit] ?? 1);
  },
  address: (text) => {
    const port = /^(?:\[[0-9a-fA-F:]+\]|[^\s:]+):(\d{1,5})$/.exec(text)?.[1];
    if (port === undefined || Number(port) > 65_535) throw new Error("is not an address like 127.0.0.1:7001");
    return text;
  },
  url: (text) => {
    if (!URL.canParse(text)) throw new Error("is not a URL");
    return text;
  },
  file: (text) => readFileSync(text, "utf8"),
  secret: (text) => new Secret(readFileSync(text, "utf8").replace(/\r?\n$/, "")),
};

function readSetting(name: string, setting: Settings[string], environment: NodeJS.ProcessEnv): unknown {
  const text = environment[name] ?? setting.default;
  if (text === undefined) throw new Error("is required");
  if (text === "" && setting.default === "") return notGiven(setting.kind);
  if (text === "") throw new Error("is empty");
  try {
    return readers[setting.kind](text);
  } catch (error) {
    if (setting.kind === "file" || setting.kind === "secret") {
      throw new Error(`names a file that cannot be read: ${text} (${(error as NodeJS.ErrnoException).code})`);
    }
    throw error;
  }
}

function notGiven(kind: keyof Readers): unknown {
  return kind === "list" ? [] : kind === "secret" ? new Secret("") : "";
}

/** Prints the table of settings for `--help`. */
export function describeSettings(settings: Settings): string {
  return Object.entries(settings)
    .map(([name, { kind, default: value, help }]) => {
      const state = value === undefined ? "required" : value === "" ? "optional" : `default ${value}`;
      return `${name}  (${kind}, ${state})\n    ${help}\n`;
    })
    .join("");
}

/**
 * Reads every setting of the table. Ends the process with one line per fault, all at once, when any is missing or
 * malformed; and with the table when the command line asks for `--help`.
 */
export function readConfig<const S extends Settings>(settings: S, environment = process.env): Config<S> {
  if (process.argv.includes("--help")) {
    process.stdout.write(`Settings, read from the environment:\n\n${describeSettings(settings)}`);
    process.exit(0);
  }
  const result = parseConfig(settings, environment);
  if (result.kind === "faults") {
    process.stderr.write(`${result.faults.join("\n")}\n`);
    process.exit(1);
  }
  return result.config;
}

/** The part of `readConfig` that judges: the values, or every fault. */
export function parseConfig<const S extends Settings>(
  settings: S,
  environment: NodeJS.ProcessEnv,
): { kind: "config"; config: Config<S> } | { kind: "faults"; faults: readonly string[] } {
  const values: Record<string, unknown> = {};
  const faults: string[] = [];
  for (const [name, setting] of Object.entries(settings)) {
    try {
      values[name] = readSetting(name, setting, environment);
    } catch (error) {
      faults.push(`${name} ${(error as Error).message}. ${setting.help}`);
    }
  }
  return faults.length > 0 ? { kind: "faults", faults } : { kind: "config", config: values as Config<S> };
}
